"""The memory analysis as files: a figure, ``routing.json``, and one HTML page with all results.

The page makes no requests: images are ``data:`` URIs and charts are inline SVG.

Axes: S stages, N units, K classes (see ``rmn_jax``).
"""

import json
import pathlib
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from rmn_jax.analysis import charts, memories
from rmn_jax.analysis.measures import COLOUR_BINS, EDGE_BINS, Information
from rmn_jax.analysis.page import frame
from rmn_jax.analysis.study import Study, stage_results
from rmn_jax.files import write_file

TOP_CLASSES = 6  # shown for each unit
FEW_IMAGES = 4  # shown for each of many units; the file stays small
# Keys of ``Study.information`` and what they are called on the page.
NAMES = {"class": "class", "colour": "mean colour", "edges": "edge energy"}


def write(study: Study, folder: pathlib.Path) -> dict[str, Any]:
    """Writes ``figures/memories.png``, ``figures/report.html`` and ``routing.json``.

    Args:
      study: the results.
      folder: an existing folder, for example that of the run.

    Returns:
      ``{"figures": [paths], "stages": [...]}``, with the load, the dead units and the measures of each stage.
    """
    figures = folder / "figures"
    figure = memories.draw(
        study.nearest,
        study.images,
        figures / "memories.png",
        f"{study.title}: images nearest to each memory",
        study.stages,
    )
    page = figures / "report.html"
    write_file(page, to_html(study))
    results = stage_results(study)
    with_images = [
        result | {"nearest": position.tolist(), "images": _names(study, position), "distance": distance.tolist()}
        for result, position, distance in zip(results, study.nearest.position, study.nearest.distance, strict=True)
    ]
    write_file(folder / "routing.json", json.dumps({"stages": with_images}, indent=1) + "\n")
    return {"figures": [str(figure), str(page)], "stages": results}


def _names(study: Study, position: np.ndarray) -> list[list[str]]:
    return [[_name(study, int(at)) for at in row] for row in position]


def _name(study: Study, position: int) -> str:
    return (study.names or {}).get(position, f"image {position}")


def to_html(study: Study) -> str:
    """The page as an HTML document."""
    num_stages, _, top = study.nearest.position.shape
    top = min(top, FEW_IMAGES) if _many(study) else top
    smallest = min(max(image.shape) for image in study.images.values())
    sections = [
        _header(study),
        _information(study),
        _loads(study),
        *(_stage(study, stage) for stage in range(num_stages)),
        _footer(),
    ]
    columns = min(top, max(4, -(-top // 2)))  # two rows of images, or one row of up to four
    kinds = ["pixels"] * (smallest <= charts.LOSSLESS) + ["many"] * _many(study)
    body = f'<main class="{" ".join(kinds)}" style="--columns: {columns}">{"".join(sections)}</main>'
    return frame(study.title, body, study.nearest.load.shape[1])


def _many(study: Study) -> bool:
    return study.nearest.load.shape[1] > charts.MANY_UNITS


def _header(study: Study) -> str:
    dead = int((study.nearest.load == 0).sum())
    facts = {} if study.top1 is None else {"top-1 accuracy": f"{study.top1:.2%}"}
    facts |= {"dead units": f"{dead} of {study.nearest.load.size}", **study.facts}
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    numbers = [study.number(i) for i in range(len(study.nearest.load))]
    links = "".join(f'<a href="#stage{number}">Stage {number}</a>' for number in numbers)
    return (
        f"<header><h1>{escape(study.title)}</h1>"
        '<p class="lead">Memory analysis of a network with routing by memory. At each stage an image goes to the unit '
        "whose memory is nearest to the features of the image. This page shows what the memories stand for.</p>"
        f"<dl>{shown}</dl><details><summary>Configuration</summary><pre>{escape(study.config)}</pre></details>"
        f'<nav><a href="#information">What explains the routing</a><a href="#loads">Load over training</a>{links}</nav>'
        "</header>"
    )


def _information(study: Study) -> str:
    heads = "".join(f"<th>{name}</th>" for name in NAMES.values())
    rows = "".join(
        f'<tr><th scope="row">Stage {study.number(i)}</th>'
        + "".join(_information_cell(NAMES[name], stage[name]) for name in NAMES)
        + f"<td>{in_words(stage)}</td></tr>"
        for i, stage in enumerate(study.information)
    )
    return (
        '<section id="information"><h2>What explains the routing</h2>'
        "<p>How much of the choice of unit one property of an image explains. 0%: no more than chance, as for shuffled "
        "images. 100%: the property determines the unit. Below each share: the mutual information in nats, and its "
        'value by chance.</p><div class="card"><table>'
        f"<thead><tr><th></th>{heads}<th>summary</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _information_cell(name: str, found: Information) -> str:
    return (
        f'<td data-name="{name}"><b>{max(found.share, 0):.0%}</b>{_bar(found.share)}'
        f'<span class="soft">{found.nats:.3f} nats, chance {found.chance:.3f}</span></td>'
    )


def in_words(stage: dict[str, Information]) -> str:
    """One sentence: which properties explain a stage's routing, the best first."""
    explaining = sorted((name for name in stage if stage[name].above_chance), key=lambda name: -stage[name].share)
    if not explaining:
        return "None of the three explains more than chance."
    first, *others = (NAMES[name] for name in explaining)
    if not others:
        return f"Explained by {first}; the others explain no more than chance."
    return f"Explained best by {first}, then by {' and '.join(others)}."


def _loads(study: Study) -> str:
    if not study.history:
        return '<section id="loads"><h2>Load over training</h2><p>The run has no routed epochs yet.</p></section>'
    epochs = [epoch for epoch, _ in study.history]
    load = np.stack([load for _, load in study.history])
    legend = "".join(f"<span>{_swatch(unit)}unit {unit}</span>" for unit in range(load.shape[2]))
    if _many(study):
        legend = "<span>Colours repeat. Point at a bar to see the share of each unit.</span>"
    charted = "".join(_load_figure(epochs, load[:, i], study.number(i)) for i in range(load.shape[1]))
    return (
        '<section id="loads"><h2>Load over training</h2>'
        "<p>Each unit's share of the training images. One bar for each epoch, from the first routed epoch on.</p>"
        f'<div class="legend">{legend}</div><div class="loads">{charted}</div></section>'
    )


def _load_figure(epochs: list[int], load: np.ndarray, number: int) -> str:
    last = load[-1] / max(1, load[-1].sum())
    middle = 100 * (np.cumsum(last) - last / 2)
    ends = "".join(f'<span style="top: {middle[unit]:.1f}%">{unit}</span>' for unit in np.flatnonzero(last >= 0.055))
    dead = np.flatnonzero(load[-1] == 0)
    listed = f"{len(dead)} of {len(last)}" if len(last) > charts.MANY_UNITS else _units(dead)
    note = f'<span class="warn">dead: {listed}</span>' if len(dead) else ""
    return (
        f'<figure class="card"><figcaption>Stage {number} {note}</figcaption><div class="plot">'
        f'{charts.load_chart(epochs, load)}<div class="ends">{ends}</div></div>'
        f'<div class="axis soft"><span>epoch {epochs[0]}</span><span>{epochs[-1]}</span></div></figure>'
    )


def _stage(study: Study, stage: int) -> str:
    load = study.nearest.load[stage]
    counts = np.zeros((len(study.class_names), len(load)), int)
    np.add.at(counts, (study.label, study.assignment[stage]), 1)
    order = np.arange(len(load))
    if _many(study):  # the fullest first, and of dead units only the numbers
        order = np.argsort(-load, kind="stable")[: int((load > 0).sum())]
    units = "".join(_unit(study, stage, int(unit), counts) for unit in order)
    if len(order) < len(load):
        numbers = ", ".join(map(str, np.flatnonzero(load == 0)))
        units += (
            f'<article class="card dead"><p class="warn">{len(load) - len(order)} dead units</p>'
            f'<p class="soft">They receive no images: {numbers}.</p></article>'
        )
    heat = charts.heat_map(counts, study.class_names, load == 0)
    return (
        f'<section id="stage{study.number(stage)}"><h2>Stage {study.number(stage)}</h2>'
        f"<p>{in_words(study.information[stage])} {_constancy(study, stage)}</p>"
        f'<div class="stage"><div class="units">{units}</div><figure class="card"><figcaption>Classes by unit '
        '<span class="soft">0% <span class="scale"></span> 100% of a class</span></figcaption>'
        f"{heat}</figure></div></section>"
    )


def _constancy(study: Study, stage: int) -> str:
    """Whether an image stays with its unit: over its augmented views, and over training."""
    told = []
    if study.views:
        found = study.views[stage]
        told.append(
            f"{found.share:.0%} of a training image's augmented views go to one unit (by chance: {found.chance:.0%})."
        )
    if study.churn:
        epoch, shares = study.churn[-1]
        told.append(f"{shares[stage]:.1%} of the held-out images changed their unit before epoch {epoch}'s evaluation.")
    return " ".join(told)


def _unit(study: Study, stage: int, unit: int, counts: np.ndarray) -> str:
    load = study.nearest.load[stage]
    share = load[unit] / max(1, load.sum())
    shown = slice(FEW_IMAGES if _many(study) else None)
    positions, distances = study.nearest.position[stage, unit][shown], study.nearest.distance[stage, unit][shown]
    others = study.nearest.other[stage, unit][shown]
    images = "".join(
        _image(study, int(at), bool(other), f"distance {far:.3g} from the memory of unit {unit}")
        for at, far, other in zip(positions, distances, others, strict=True)
    )
    dead = load[unit] == 0
    if dead:
        told = (
            '<p class="warn">dead unit</p>'
            '<p class="soft">It receives no images. Those shown are nearest to its memory.</p>'
        )
        head = f'<h3>{_swatch(unit)}Unit {unit}</h3><span class="share">0%</span>'
    else:
        told = f'<ol class="classes">{_top_classes(study, counts, unit)}</ol>'
        head = (
            f'<h3>{_swatch(unit)}Unit {unit}</h3><span class="share">{share:.1%}</span> '
            f'<span class="soft">{load[unit]:,} images</span>'
        )
    return (
        f'<article class="unit card{" dead" if dead else ""}"><header>{head}{_bar(share, unit)}</header>'
        f'<div class="images">{images}</div><div>{told}</div></article>'
    )


def _image(study: Study, position: int, other: bool, distance: str) -> str:
    row = np.searchsorted(study.position, position)
    path = study.assignment[:, row]
    name = study.class_names[study.label[row]]
    units = ", ".join(f"unit {unit} at stage {study.number(i)}" for i, unit in enumerate(path))
    title = f"{name}\n{_name(study, position)}\n{distance}\n{units}"
    return (
        f'<img src="{charts.data_uri(study.images[position])}" alt="{escape(name)}" title="{escape(title)}" '
        f'data-image="{position}"{" class=other" if other else ""}>'
    )


def _top_classes(study: Study, counts: np.ndarray, unit: int) -> str:
    got = counts[:, unit] / counts[:, unit].sum()
    usual = counts.sum(axis=1) / counts.sum()
    lines = []
    for index in np.argsort(-got, kind="stable")[:TOP_CLASSES]:
        if got[index] > 0:
            name = study.class_names[index]
            title = f"{name}: {got[index]:.1%} of the unit's images, {usual[index]:.1%} of all images"
            lines.append(
                f'<li title="{escape(title)}" style="--part: {got[index]:.1%}"><span>{escape(name)}</span>'
                f"<b>{got[index]:.0%}</b></li>"
            )
    return "".join(lines)


def _footer() -> str:
    return (
        "<footer><p>Each unit shows the images whose features are nearest to its memory, the nearest first. A dashed "
        "frame marks an image that goes to another unit, whose memory is nearer. Point at an image to see its class, "
        "its units at all stages, and its copies under other memories. The classes listed are those with the largest "
        "share of the unit's images.</p><p>Mean colour: red, green and blue, each in "
        f"{COLOUR_BINS} quantile bins, as one joint code. Edge energy: mean gradient of the luminance, in {EDGE_BINS} "
        "quantile bins. A share is (information - chance) / (entropy of the units - chance), where chance is the mean "
        "over 100 shuffles. The properties overlap (a class has typical colours), so their shares do not add up.</p>"
        "</footer>"
    )


def _swatch(unit: int) -> str:
    return f'<span class="swatch u{unit}"></span>'


def _bar(share: float, unit: int | None = None) -> str:
    colour = "" if unit is None else f' class="u{unit}"'
    return f'<span class="bar"><i{colour} style="width: {min(max(share, 0), 1):.1%}"></i></span>'


def _units(units: Iterable[int]) -> str:
    """Unit numbers as text, for example ``unit 0, unit 2``."""
    return ", ".join(f"unit {unit}" for unit in units)
