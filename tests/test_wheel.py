"""The wheel has the command and the pages: both work away from the checkout."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

import rmn_jax

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's content. Its dependencies come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], capture_output=True, text=True, check=False
    )
    if built.returncode and "setuptools" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("the build backend cannot be downloaded")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def rmn(installed, folder, *typed):
    code = "import sys; from rmn_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *typed],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_runs_with_its_pages(installed, tmp_path):
    done = rmn(installed, tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"rmn {rmn_jax.__version__}\n"), done.stderr
    done = rmn(installed, tmp_path, "data", "show", "--config=digits:plain", "--config.batch_size=16")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "batch.png").is_file()
    # Found, and its data set is not there: the message is of the data, not of the page.
    done = rmn(installed, tmp_path, "data", "show", "--config=resnet18_cifar100:plain", "--config.data.data_dir=none")
    assert done.returncode == 2 and "cifar100" in done.stderr and "no configuration" not in done.stderr
    done = rmn(installed, tmp_path, "data", "show", "--config=resnet18_cifar")
    assert done.returncode == 2 and "Did you mean --config=resnet18_cifar100?" in done.stderr


def test_the_wheel_trains_and_predicts(installed, tmp_path):
    done = rmn(installed, tmp_path, "train", "--help")
    assert done.returncode == 0 and "--workdir" in done.stdout
    tiny = ["epochs=1", "batch_size=720", "eval_batch_size=360", "model.width=4", "learning_rate.warmup_epochs=0"]
    typed = ["train", "--config=digits:plain", "--workdir=run", *(f"--config.{word}" for word in tiny)]
    done = rmn(installed, tmp_path, *typed)
    assert done.returncode == 0, done.stderr
    # 1,437 training images in batches of 720: one full one.
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 1
    Image.new("RGB", (8, 8), (90, 90, 90)).save(tmp_path / "grey.png")
    done = rmn(installed, tmp_path, "predict", "--workdir=run", "grey.png")
    assert done.returncode == 0 and json.loads(done.stdout)["file"] == "grey.png", done.stderr
