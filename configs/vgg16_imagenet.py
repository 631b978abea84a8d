"""VGG-16 on ImageNet: an 8-way RMN with conditional attention at batch 1024, as the paper trains it.

    rmn data prepare imagenet2012 --source FOLDER
    rmn train --config=configs/vgg16_imagenet.py --workdir=runs/vgg16_imagenet

``:rmn_no_ca`` leaves the attention out; ``:plain`` is the backbone alone at batch 256. The paper's top-1 accuracies:
76.16% (RMN with CA), 74.8% (RMN), 72.92% (plain, batch 256), 72.76% (plain, batch 1024).
"""

from rmn_jax.config import default_config


def get_config(variant: str = "rmn"):
    config = default_config(variant)
    config.epochs = 160
    config.stem_epochs = 40

    config.model.backbone = "vgg16_bn"
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
