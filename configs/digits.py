"""RMN with conditional attention on scikit-learn's handwritten digits: the demo, and a run to play with.

    rmn train --config=configs/digits.py --workdir=runs/digits            # the four steps
    rmn train --config=configs/digits.py:plain --workdir=runs/digits_plain  # the backbone alone

1,437 images of 8x8 pixels for training, 360 held out. Less than a minute each on 2 CPU cores.
The batch is large for so few images: a unit's batch norm sees a quarter of it, and of 128 it would see too little.
"""

from rmn_jax.config import default_config


def get_config(variant: str = "rmn"):
    config = default_config(variant)
    config.epochs = 60
    config.stem_epochs = 20
    config.batch_size = 256
    config.eval_batch_size = 360

    config.model.backbone = "resnet8"
    config.model.num_units = 4

    config.learning_rate.peak = 0.1
    config.learning_rate.warmup_epochs = 2

    config.data.name = "digits"
    config.data.augment = "crop"
    config.data.crop_padding = 1

    config.checkpoint.every_epochs = 10
    return config
