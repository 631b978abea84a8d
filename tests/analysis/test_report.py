"""The page of a study of random images: complete, self-contained, escaped, and loaded by a real browser."""

import json
import re
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from PIL import Image

from rmn_jax.analysis import charts, measures, report
from rmn_jax.analysis.memories import Nearest
from rmn_jax.analysis.study import Study, stage_results
from rmn_jax.training.progress import read_metrics

NASTY = ('<script>alert("1")</script>', "cat & dog", 'it\'s "quoted"', "grüne Äpfel", "猫", "a" * 60)


def random_study(
    num_stages=2, num_units=3, top=4, classes=NASTY, side=8, examples=120, epochs=5, dead=((1, 2),)
) -> Study:
    """A study of random images; ``dead`` lists the (stage, unit) that receive none."""
    rng = np.random.default_rng(0)
    label = np.arange(examples) % len(classes)
    assignment = (rng.integers(0, 2, (num_stages, examples)) + label * num_units // len(classes)) % num_units
    for stage, unit in dead:
        assignment[stage] = np.where(assignment[stage] == unit, (unit + 1) % num_units, assignment[stage])
    load = np.stack([np.bincount(units, minlength=num_units) for units in assignment])
    position = rng.integers(0, examples, (num_stages, num_units, top))
    distance = np.sort(rng.random(position.shape), axis=-1).astype(np.float32)
    colours = rng.integers(0, 255, (examples, 1, 1, 3))
    return Study(
        title="resnet8, N = 3, on <folder> & co",
        top1=0.97,
        facts={"seed": "<0>"},
        config='{"path": "<a&b>"}',
        class_names=tuple(classes),
        assignment=assignment,
        label=label,
        position=np.arange(examples),
        nearest=Nearest(position, distance, load, assignment[np.arange(num_stages)[:, None, None], position]),
        images={
            int(at): np.clip(colours[at] + rng.integers(-60, 60, (side, side, 3)), 0, 255).astype(np.uint8)
            for at in np.unique(position)
        },
        information=[
            {
                name: measures.information(units, codes, shuffles=10)
                for name, codes in {"class": label, "colour": label % 2, "edges": rng.integers(0, 4, examples)}.items()
            }
            for units in assignment
        ],
        history=[(epoch + 3, load * (epoch + 1)) for epoch in range(epochs)],
    )


class Page(HTMLParser):
    """A parsed page: elements with attributes, and the plain text. Asserts that every element is closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag, part=""):
        """Attributes of all elements of this name; with ``part``, of those that have this class."""
        return [x for name, x in self.elements if name == tag and (not part or part in x.get("class", "").split())]


@pytest.fixture(scope="module")
def html():
    return report.to_html(random_study())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_refers_to_nothing_outside_itself(html, page):
    assert re.findall(r"https?:|@import", html) == []
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/", "#")), attributes
    assert all(target.startswith(("data:", "#")) for target in re.findall(r"url\(\s*['\"]?([^)]*)", html))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {found["href"].removeprefix("#") for found in page.named("a")} <= ids


def test_names_are_escaped(html, page):
    assert len(page.named("script")) == 1  # the page's own script, not that in the class name
    words = "".join(page.texts)
    titles = [attributes.get("title", "") for _, attributes in page.elements]
    for name in NASTY:
        assert any(title.startswith(name) for title in titles)
        assert name[:16] in words
    assert "resnet8, N = 3, on <folder> & co" in words and '{"path": "<a&b>"}' in words and "<0>" in words
    assert "97.00%" in words


def test_every_unit_is_shown_with_its_share_and_images(page):
    study = random_study()
    words = "".join(page.texts)
    assert len(page.named("article", "unit")) == 2 * 3
    assert len(page.named("img")) == 2 * 3 * 4
    for load in study.nearest.load:
        for count in load[load > 0]:
            assert f"{count / 120:.1%}" in words
    for stage in (1, 2):
        assert f"Stage {stage}" in words
    wanted = [str(at) for at in study.nearest.position.ravel()]
    assert [image["data-image"] for image in page.named("img")] == wanted


def test_dead_units_are_marked(page):
    assert "".join(page.texts).count("dead unit") >= 2  # the count in the header, and the unit itself
    marked = ["dead" in found["class"].split() for found in page.named("article", "unit")]
    assert marked == [False] * 5 + [True]  # unit 2 of stage 2
    assert len(page.named("text", "dead")) == 1
    alive = Page(report.to_html(random_study(dead=())))
    assert not alive.named("article", "dead") and not alive.named("text", "dead")


def test_images_that_go_to_another_unit_are_marked(page):
    study = random_study()
    for image, (stage, unit, _) in zip(page.named("img"), np.ndindex(2, 3, 4), strict=True):
        other = study.assignment[stage, int(image["data-image"])] != unit
        assert (image.get("class") == "other") == (other and (stage, unit) != (1, 2))


def test_the_figure_marks_the_same_images(tmp_path):
    study = random_study()
    marked = [x.get("class") == "other" for x in Page(report.to_html(study)).named("img")]
    assert study.nearest.other.ravel().tolist() == marked and any(marked)
    red = []
    own = study.nearest._replace(assignment=np.broadcast_to(np.arange(3)[None, :, None], (2, 3, 4)))
    for nearest in (study.nearest, own):
        path = report.memories.draw(nearest, study.images, tmp_path / "memories.png", "title")
        image = np.asarray(Image.open(path).convert("RGB")).astype(int)
        red.append(((image[..., 0] > 220) & (image[..., 1] < 60) & (image[..., 2] < 60)).sum())
    assert red[0] > red[1] + 10 * study.nearest.other.sum()


def test_an_image_says_its_name_and_its_units_by_the_numbers_of_the_stages():
    study = random_study()
    study = study._replace(stages=(2, 4), names={int(at): f"cats/{at}.png" for at in np.unique(study.nearest.position)})
    for image in Page(report.to_html(study)).named("img"):
        at = int(image["data-image"])
        first, second = study.assignment[:, at]
        title = image["title"].splitlines()
        assert title[1] == f"cats/{at}.png" and title[3] == f"unit {first} at stage 2, unit {second} at stage 4"


def many_units():
    """Two stages of 40 units; stage 1 has three dead ones."""
    names = [f"class {index}" for index in range(40)]
    return random_study(2, 40, 8, names, examples=2000, dead=((0, 3), (0, 17), (0, 39)))


def test_of_many_units_the_fullest_come_first_and_dead_ones_are_numbers():
    study = many_units()
    page = Page(report.to_html(study))
    alive = [int((load > 0).sum()) for load in study.nearest.load]
    assert alive == [37, 40]
    assert len(page.named("article", "unit")) == 77 and len(page.named("img")) == 77 * report.FEW_IMAGES
    shown = [text.removeprefix("Unit ") for text in page.texts if text.startswith("Unit ")]
    loads = [study.nearest.load[0][int(unit)] for unit in shown[:37]]
    assert loads == sorted(loads, reverse=True) and not set(shown[:37]) & {"3", "17", "39"}
    words = "".join(page.texts)
    assert "They receive no images: 3, 17, 39." in words and "dead: 3 of 40" in words and "dead: 0" not in words
    first, second = (Page(charts.heat_map(np.eye(6, 40), NASTY, load == 0)) for load in study.nearest.load)
    assert len(first.named("text", "column")) == 37 and len(second.named("text", "column")) == 40


def test_every_unit_has_a_colour():
    for num_units in (3, 130):
        html = report.to_html(random_study(num_units=num_units, examples=600))
        assert re.findall(r"\.u(\d+) \{", html) == [str(unit) for unit in range(num_units)]


def test_the_figure_has_the_fullest_of_many_units(tmp_path):
    study = random_study(1, 40, 1, [f"class {index}" for index in range(40)], examples=400, dead=())
    path = report.memories.draw(study.nearest, study.images, tmp_path / "memories.png", "title")
    assert Image.open(path).convert("RGB").height == int((0.56 * 32 + 0.8) * 160)


def test_load_chart_stacks_the_shares():
    chart = Page(charts.load_chart([7, 8], np.array([[1, 0, 3], [2, 2, 4]])))
    first, second, third = (found["d"] for found in chart.named("path"))
    # Epoch 7: unit 0 has a quarter, unit 2 the rest. Epoch 8: a quarter, a quarter, a half. Unit 0 is at the top.
    assert first == "M0.04 0h0.92v25h-0.92zM1.04 0h0.92v25h-0.92z"
    assert second == "M1.04 25h0.92v25h-0.92z"
    assert third == "M0.04 25h0.92v75h-0.92zM1.04 50h0.92v50h-0.92z"
    assert "epoch 7\nunit 0: 25.0%\nunit 2: 75.0%" in chart.texts


def test_load_chart_of_an_epoch_without_inputs_is_empty():
    chart = Page(charts.load_chart([1], np.zeros((1, 2))))
    assert [found["d"] for found in chart.named("path")] == ["", ""]


def test_heat_map_orders_classes_by_their_unit():
    counts = np.array([[1, 9], [8, 2], [0, 10], [9, 1]])
    assert charts.class_order(counts / 10).tolist() == [3, 1, 2, 0]
    drawn = Page(charts.heat_map(counts, ["a", "b", "c", "d"], np.zeros(2, bool)))
    labels = [text for text in drawn.texts if text in "abcd"]
    assert labels == ["d", "b", "c", "a"]
    assert "a\nunit 0: 10.0%\nunit 1: 90.0%" in drawn.texts
    # Shares 0.1 (twice), 0.2, 0.8, 0.9 (twice), 1: five levels, and no cell for the class that unit 0 never receives.
    levels = [float(found["fill-opacity"]) for found in drawn.named("path", "heat")]
    assert levels == [0.1, 0.2, 0.8, 0.9, 1.0]
    assert sum(found["d"].count("M") for found in drawn.named("path", "heat")) == 7


def test_heat_map_labels_as_many_classes_as_fit():
    def labels(num_classes):
        counts = np.random.default_rng(0).integers(0, 9, (num_classes, 4))
        return len(Page(charts.heat_map(counts, ["x"] * num_classes, np.zeros(4, bool))).named("text", "row"))

    assert labels(10) == 10 and labels(40) == 40
    assert 40 <= labels(200) <= 60


def test_large_images_are_scaled_down_and_small_ones_keep_their_pixels():
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    assert np.array_equal(_decoded(charts.data_uri(small)), small)
    assert _decoded(charts.data_uri(np.zeros((224, 112, 3), np.uint8))).shape == (96, 48, 3)


def _decoded(uri):
    import base64
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_in_words():
    nothing, much, some = (
        measures.Information(nats, 0.05, 0.08, share) for nats, share in ((0.06, 0.01), (0.9, 0.6), (0.3, 0.2))
    )
    names = ("class", "colour", "edges")
    say = lambda *found: report.in_words(dict(zip(names, found, strict=True)))  # noqa: E731
    assert say(nothing, nothing, nothing).startswith("None of the three")
    assert say(much, nothing, nothing) == "Explained by class; the others explain no more than chance."
    assert say(some, much, nothing) == "Explained best by mean colour, then by class."
    assert say(some, some, much) == "Explained best by edge energy, then by class and mean colour."


def test_files_and_numbers(tmp_path):
    study = random_study()
    result = report.write(study, tmp_path)
    assert result["figures"] == [str(tmp_path / "figures" / name) for name in ("memories.png", "report.html")]
    stored = json.loads((tmp_path / "routing.json").read_text())["stages"]
    for brief, whole, load in zip(result["stages"], stored, study.nearest.load, strict=True):
        assert whole.items() >= brief.items() and {"nearest", "distance", "images"} <= whole.keys()
        assert whole["images"] == [[f"image {at}" for at in row] for row in whole["nearest"]]
        assert brief["load"] == load.tolist() and brief["dead_units"] == int((load == 0).sum())
        assert set(brief["information"]) == {"class", "colour", "edges"}
        for found in brief["information"].values():
            assert set(found) == {"nats", "chance", "chance_95", "share"}
            assert 0 <= found["nats"] <= brief["entropy"] + 1e-9
    assert stage_results(study) == result["stages"]


def test_a_run_without_routed_epochs_has_no_load_chart():
    page = Page(report.to_html(random_study(epochs=0)))
    assert not page.named("svg", "load") and page.named("svg", "heatmap")


def test_a_line_of_the_metrics_that_is_being_written_is_left_out(tmp_path):
    assert read_metrics(tmp_path / "absent.jsonl") == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1}\n{"step": 2, "epoch": 2}\n{"ste')
    assert [line["epoch"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def large_study():
    """A study of the largest usual size: four stages of eight units, eight photographs each, 200 classes, 80 epochs."""
    names = [f"n{index:08d}, a name such as many classes have" for index in range(200)]
    return random_study(4, 8, 8, names, side=224, examples=2000, epochs=80, dead=((0, 3), (3, 0), (3, 1)))


def test_a_large_page_stays_below_five_megabytes():
    assert len(report.to_html(large_study()).encode()) < 5e6


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.find() is None:
        pytest.skip("no Chromium found; install chromium to test pages in a browser")
    with browser.Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("study", [random_study, large_study, many_units])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_a_browser_shows_the_page(chromium, tmp_path, study, width, dark):
    file = tmp_path / "report.html"
    file.write_text(report.to_html(study()), encoding="utf-8")
    chromium.events.clear()
    chromium.open(file.as_uri(), width=width, dark=dark)
    images = chromium.evaluate("Array.from(document.images, image => [image.naturalWidth, image.clientWidth])")
    assert len(images) == (77 * report.FEW_IMAGES if study is many_units else study().nearest.position.size)
    assert all(natural > 0 and shown >= 20 for natural, shown in images)
    # No horizontal scrolling, on a phone either.
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    # Pointing at an image marks all its copies.
    marked = """(() => { const image = document.images[0];
      image.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
      return Array.from(document.querySelectorAll("img.same"), other => other.dataset.image); })()"""
    position = np.array(chromium.evaluate("Array.from(document.images, image => Number(image.dataset.image))"))
    assert chromium.evaluate(marked) == [str(position[0])] * int((position == position[0]).sum())
    assert {address for address in chromium.requests() if not address.startswith("data:")} == {file.as_uri()}
    assert chromium.complaints() == []


def test_the_browser_reports_a_request_and_an_error(chromium, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text('<img src="absent.png"><script>console.error("x"); undefined.y</script>')
    chromium.events.clear()
    chromium.open(file.as_uri())
    assert any(address.endswith("absent.png") for address in chromium.requests())
    kinds = {complaint["method"] for complaint in chromium.complaints()}
    assert {"Runtime.exceptionThrown", "Runtime.consoleAPICalled"} <= kinds
