"""A short RMN training on the real Tiny ImageNet: all four phases over all 100,000 images, scaled down to 8 pixels."""

import json
import os
import subprocess
import sys

import numpy as np


def test_a_short_training_learns(real_tiny_imagenet, tmp_path):
    _, data_dir = real_tiny_imagenet
    command = [
        sys.executable,
        "-m",
        "rmn_jax",
        "train",
        f"--workdir={tmp_path}",
        "--config=configs/resnet18_tiny_imagenet.py",
        f"--config.data.data_dir={data_dir}",
        "--config.data.image_size=8",
        "--config.model.backbone=resnet8",
        "--config.model.num_units=4",
        "--config.batch_size=500",
        "--config.epochs=2",
        "--config.stem_epochs=1",
        "--config.learning_rate.peak=0.2",
        "--config.learning_rate.warmup_epochs=1",
    ]
    # In a separate process, with full compiler optimization, as users run it.
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == [1, 4]
    # Chance is 0.5%, with a standard deviation of 0.07% over 10,000 images. 8 pixels allow little more.
    assert lines[0]["eval_top1"] > 0.015 and result["top1"] > 0.02
    assert lines[1]["train_loss"] < lines[0]["train_loss"] < np.log(200)
    assert np.array(lines[1]["load"]).sum(-1).tolist() == [100_000] * 3 and sum(lines[1]["dead_units"]) == 0
    assert lines[1]["eval_examples"] == 10_000
