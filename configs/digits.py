"""RMN with conditional attention on scikit-learn's handwritten digits: the demo, and a run to play with.

    rmn train --config=configs/digits.py --workdir=runs/digits            # the four steps
    rmn train --config=configs/digits.py:plain --workdir=runs/digits_plain  # the backbone alone

1,437 images of 8x8 pixels for training, 360 held out. About a minute on 2 CPU cores.
"""

from rmn_jax.config import default_config


def get_config(variant: str = "rmn"):
    config = default_config()
    config.method = variant
    config.epochs = 60
    config.stem_epochs = 20
    config.batch_size = 128
    config.eval_batch_size = 360

    config.model.backbone = "resnet8"
    config.model.num_units = 4
    config.model.attention = "conditional" if variant == "rmn" else "none"

    config.learning_rate.peak = 0.1
    config.learning_rate.warmup_epochs = 2

    config.data.name = "digits"
    config.data.augment = "crop"
    config.data.crop_padding = 1

    config.checkpoint.every_epochs = 10
    return config
