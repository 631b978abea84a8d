"""A short RMN run on the digits, which several files share."""

import numpy as np
import pytest
from PIL import Image

from rmn_jax.cli.pages import load_config
from rmn_jax.data import digits
from rmn_jax.training.phases import run_training
from rmn_jax.training.run import Run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A short RMN run on the digits, and the first 100 of the 360 held-out images as files."""
    folder = tmp_path_factory.mktemp("predict")
    settings = ["--config.epochs=6", "--config.stem_epochs=3", "--config.eval_batch_size=360"]
    run = Run(load_config("configs/digits.py", settings), folder / "run", quiet=True)
    run_training(run)
    images, _ = digits.load_arrays()["eval"]
    paths = []
    for number, image in enumerate(images[:100]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(np.broadcast_to(image.reshape(8, 8, -1), (8, 8, 3)).astype(np.uint8)).save(paths[-1])
    return run, paths
