"""Writes docs/transcript.md: commands on the trained digits network of weights/, and what they print.

    python -m experiments.transcript

The commands run one after another in an empty folder with a link to weights/ and five held-out digits as image files. A
minute on 2 CPU cores.
"""

import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from PIL import Image

from rmn_jax.data.digits import load_arrays
from rmn_jax.files import write_file

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "transcript.md"
DIGITS = 5
# What a command shows, and the command. A command that ends with another status than 0 stops the script, but for the
# one whose text says that it fails.
COMMANDS = (
    ("A run from the weights in the repository:", "rmn import --from weights/digits_rmn.safetensors --workdir run"),
    ("Its accuracy on the 360 held-out digits, also by class:", "rmn eval --workdir run --out figures"),
    ("The table that was written:", "cat figures/confusion.csv"),
    ("Classes of image files, and the unit of each image at each stage:", "rmn predict --workdir run --top 2 digits"),
    ("One file that needs JAX alone:", "rmn export --workdir run --out digits.rmn"),
    ("The same predictions from the file, as a table:", "rmn predict --model digits.rmn --top 2 --csv digits"),
    ("The weights, for a run on other classes:", "rmn export --workdir run --out digits.st --format safetensors"),
    (
        "A run that goes on from the weights, on the first six digits and with a new classifier:",
        "rmn import --from digits.st --workdir six --config.data.classes=6 --config.epochs=5",
    ),
    (
        "A file that is no image fails; the others are predicted:",
        "rmn predict --model digits.rmn --top 1 figures/confusion.csv digits/0-is-a-7.png",
    ),
)
FAILS = "fails"
_HEAD = f"""# Commands and what they print

Written by `python -m experiments.transcript`, in a folder with `weights/` of the repository and `digits/`: {DIGITS}
held-out digits as image files. Lines on stderr come first. Last digits depend on the machine.
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        prepare(pathlib.Path(folder))
        write_file(PAGE, "\n".join([_HEAD, *(section for section in sections(pathlib.Path(folder)))]))
    print(f'{{"page": "{PAGE}"}}')
    return 0


def prepare(folder: pathlib.Path) -> None:
    (folder / "weights").symlink_to(ROOT / "weights")
    (folder / "digits").mkdir()
    images, labels = load_arrays()["eval"]
    for number in range(DIGITS):
        Image.fromarray(images[number]).save(folder / "digits" / f"{number}-is-a-{labels[number]}.png")


def sections(folder: pathlib.Path) -> Iterator[str]:
    """Runs the commands; yields the text of the page for each."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for text, command in COMMANDS:
        program, *arguments = shlex.split(command)
        start = [sys.executable, "-m", "rmn_jax"] if program == "rmn" else [program]
        done = subprocess.run([*start, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
        if (done.returncode != 0) != (FAILS in text):
            raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stderr}")
        status = f"(exit status {done.returncode})\n" if done.returncode else ""
        yield f"{text}\n\n```console\n$ {command}\n{done.stderr}{done.stdout}{status}```\n"


if __name__ == "__main__":
    sys.exit(main())
