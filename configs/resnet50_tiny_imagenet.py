"""ResNet-50 on Tiny ImageNet: an 8-way RMN with conditional attention (CA), with the paper's hyperparameters.

    rmn data prepare tiny_imagenet --source tiny-imagenet-200.zip
    rmn train --config=configs/resnet50_tiny_imagenet.py --workdir=runs/resnet50_tiny_imagenet

Variants: ``PAGE.py:rmn_no_ca`` has no attention; ``PAGE.py:plain`` is the backbone alone, at batch 256.
Top-1 accuracy in the paper, which trains on 8 V100 GPUs with synchronised batch norm (not reproduced here yet):

    RMN with CA, batch 1024     69.93%
    RMN, batch 1024             69.1%
    plain, batch 256            67.28%
    plain, batch 1024           65.34%
"""

from rmn_jax.config import default_config


def get_config(variant: str = "rmn"):
    config = default_config(variant)
    config.epochs = 200
    config.stem_epochs = 40

    config.model.backbone = "resnet50"
    config.model.num_units = 8

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-5
    config.learning_rate.peak = 0.48
    config.learning_rate.warmup_epochs = 5

    config.data.name = "tiny_imagenet"
    config.data.image_size = 64
    config.data.augment = "crop_flip"
    config.data.crop_padding = 4
    return config
