"""ResNet-50 on ImageNet: an 8-way RMN with conditional attention (CA), with the paper's hyperparameters.

    rmn data prepare imagenet2012 --source FOLDER
    rmn train --config=configs/resnet50_imagenet.py --workdir=runs/resnet50_imagenet

Variants: ``PAGE.py:rmn_no_ca`` has no attention; ``PAGE.py:plain`` is the backbone alone, at batch 256.
Top-1 accuracy in the paper, which trains on 8 V100 GPUs with synchronised batch norm (not reproduced here yet):

    RMN with CA, batch 1024     78.31%
    RMN, batch 1024             77.8%
    plain, batch 256            76.08%
    plain, batch 1024           76.02%
"""

from rmn_jax.config import default_config


def get_config(variant: str = "rmn"):
    config = default_config(variant)
    config.epochs = 220
    config.stem_epochs = 40

    config.model.backbone = "resnet50"
    config.model.num_units = 8

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-5
    config.learning_rate.peak = 0.48
    config.learning_rate.warmup_epochs = 5

    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.augment = "resized_crop_flip"
    config.data.workers = 16
    return config
