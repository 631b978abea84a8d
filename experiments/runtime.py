"""Runtime (supplementary table): inference on one image at 224x224, plain, RMN and RMN with CA, N = 8.

    python -m experiments.runtime --data=tiny_imagenet --data_dir=D        # validation images, scaled to 224
    python -m experiments.runtime                                          # noise as images: needs no data set
    python -m experiments.runtime --data=imagenet2012 --images=5000

The first command writes ``experiments/results/runtime.json``. With other images, rounds or backbones the results go to
``runs/runtime_trial.json``; ``--out`` names another file.

All networks run in one process and take the same images in turn. Weights have their initial values, because the time
does not depend on them. The memories are features of some of the images, so that every unit is used. If PyTorch is
installed, its eager network in channels-last layout is timed as well. Absolute times hold for one machine only; compare
ratios.
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
from rmn_jax.cli.arguments import positive
from rmn_jax.config import default_config
from rmn_jax.files import write_file

BACKBONES = ("resnet18", "resnet50", "efficientnet_b0", "vgg16_bn")
SIZE = 224
# The arguments of the published results.
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
    write_file(out, json.dumps(summary, indent=1) + "\n")
    print(to_markdown(lines))
    print(json.dumps({"results": str(out)}))


def default_out(arguments) -> pathlib.Path:
    """The results file. Only the arguments in ``PUBLISHED`` replace the published results."""
    given = {**vars(arguments), "backbones": tuple(arguments.backbones)}
    if all(given[name] == value for name, value in PUBLISHED.items()):
        return suite.RESULTS / "runtime.json"
    return pathlib.Path("runs") / "runtime_trial.json"


def to_markdown(lines: list[dict]) -> str:
    """The table as Markdown: median milliseconds, ratio to the plain network with quartiles, the paper's figures."""
    rows = [
        "",
        "| backbone | network | ms | ratio to plain (quartiles) | ms in the paper | ratio in the paper |",
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
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES, help="default: all")
    parser.add_argument("--rounds", type=positive, default=30, help="timed calls for each network (default: 30)")
    parser.add_argument("--data", default="", help="prepared data set whose evaluation images to use (default: noise)")
    parser.add_argument("--data_dir", default="", help="folder of that data set (default: tfds's folder)")
    parser.add_argument("--images", type=positive, default=40, help="number of these images (default: 40)")
    parser.add_argument(
        "--out",
        type=suite.path,
        help="results file (default: experiments/results/runtime.json for --data=tiny_imagenet and no other setting, "
        "else runs/runtime_trial.json)",
    )
    return parser.parse_args(words)


def main() -> int:
    arguments = parse(sys.argv[1:])
    return suite.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
