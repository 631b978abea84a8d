"""Supplementary runtime table: one image at 224x224 through plain, RMN and RMN with CA, and their ratio.

    python -m experiments.runtime --data=tiny_imagenet --data_dir=D        # validation images, scaled to 224
    python -m experiments.runtime                                          # noise for images: needs no data set
    python -m experiments.runtime --data=imagenet2012 --images=5000

The first writes ``experiments/results/runtime.json``; other images, rounds or backbones go to
``runs/runtime_trial.json``, unless ``--out`` says where.

All sides take the same images in turn, in one process, N = 8; the weights are initial ones and the memories lie at the
features of some of the images, so that all units are used: time does not depend on what the weights are. Where PyTorch
is installed, its eager channels-last network stands beside them. Absolute times belong to one machine; compare ratios.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from experiments import suite
from experiments.paper import RUNTIME
from experiments.runs import commit
from rmn_jax.bench.latency import bench_latency
from rmn_jax.bench.measure import check_writable, machine
from rmn_jax.config import default_config
from rmn_jax.main import positive

BACKBONES = ("resnet18", "resnet50", "efficientnet_b0", "vgg16_bn")
SIZE = 224
# What the published results are of.
PUBLISHED = {"data": "tiny_imagenet", "images": 40, "rounds": 30, "backbones": BACKBONES}


def validation_images(name: str, data_dir: str, count: int) -> np.ndarray:
    """[count, 224, 224, 3] normalised images, evenly spaced over the evaluation split."""
    from rmn_jax.data.decode import decode, fit
    from rmn_jax.data.opening import open_image_set

    config = default_config().data
    config.name, config.data_dir = name, data_dir
    source = open_image_set(config).evaluation
    positions = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    images = [fit(decode(data), SIZE, SIZE) for data, _ in source.read(positions.tolist())]
    return (np.stack(images).astype(np.float32) / 255 - 0.45) / 0.23


def run(arguments) -> None:
    out = arguments.out or default_out(arguments)
    check_writable(out)
    images = None
    if arguments.data:
        images = validation_images(arguments.data, arguments.data_dir, arguments.images)
    lines = []
    for backbone in arguments.backbones:
        for line in bench_latency(backbone, SIZE, 1, 8, arguments.rounds, images=images):
            print(json.dumps(line), file=sys.stderr, flush=True)
            lines.append(line)
    summary = {
        "experiment": "runtime",
        "command": f"python -m experiments.runtime --rounds={arguments.rounds}"
        + (f" --data={arguments.data} --images={arguments.images}" if arguments.data else ""),
        "commit": commit(),
        **machine(),
        "images": arguments.data or "noise",
        "paper_milliseconds": RUNTIME,
        "lines": lines,
    }
    out.write_text(json.dumps(summary, indent=1) + "\n")
    print(to_markdown(lines))
    print(json.dumps({"results": str(out)}))


def default_out(arguments) -> pathlib.Path:
    """Where results go: only the documented measurement takes the published ones' place."""
    given = {**vars(arguments), "backbones": tuple(arguments.backbones)}
    if all(given[name] == value for name, value in PUBLISHED.items()):
        return suite.RESULTS / "runtime.json"
    return pathlib.Path("runs") / "runtime_trial.json"


def to_markdown(lines: list[dict]) -> str:
    """Median milliseconds and the ratio to plain with its quartiles, beside the paper's."""
    rows = [
        "",
        "| backbone | | ms | ratio to plain (quartiles) | paper, ms | paper, ratio |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for line in lines:
        paper = dict(zip(("plain", "RMN", "RMN+CA"), RUNTIME.get(line["backbone"], ()), strict=False))
        printed = paper.get(line["side"])
        low, high = line.get("ratio_quartiles", (1, 1))
        ratio = f"{line['ratio']:.3f} ({low:.3f}-{high:.3f})" if "ratio" in line else "1"
        beside = (f"{printed:.1f}", f"{printed / paper['plain']:.3f}") if printed else ("-", "-")
        cells = (line["backbone"], line["side"], f"{line['milliseconds']:.1f}", ratio, *beside)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([*rows, ""])


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = suite.Parser("runtime", __doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--rounds", type=positive, default=30, help="images timed of each side (default: 30)")
    parser.add_argument("--data", default="", help="a prepared data set, whose evaluation images are used")
    parser.add_argument("--data_dir", default="", help="where that is (default: tfds's folder)")
    parser.add_argument("--images", type=positive, default=40, help="how many of them (default: 40)")
    parser.add_argument(
        "--out",
        type=suite.path,
        help="default: experiments/results/runtime.json for what is documented, else runs/runtime_trial.json",
    )
    return parser.parse_args(words)


def main() -> int:
    arguments = parse(sys.argv[1:])
    return suite.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
