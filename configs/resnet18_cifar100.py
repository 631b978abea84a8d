"""ResNet-18 on CIFAR-100: an 8-way RMN with conditional attention (CA), with the paper's hyperparameters.

    rmn data prepare cifar100 --source cifar-100-binary.tar.gz
    rmn train --config=configs/resnet18_cifar100.py --workdir=runs/resnet18_cifar100

Variants: ``PAGE.py:rmn_no_ca`` has no attention; ``PAGE.py:plain`` is the backbone alone, at batch 256.
Top-1 accuracy in the paper, which trains on 8 V100 GPUs with synchronised batch norm (not reproduced here yet):

    RMN with CA, batch 1024     77.94%
    RMN, batch 1024             76.8%
    plain, batch 256            75.62%
    plain, batch 1024           73.36%
"""

from rmn_jax.config import default_config


def get_config(variant: str = "rmn"):
    config = default_config(variant)
    config.epochs = 120
    config.stem_epochs = 40

    config.model.backbone = "resnet18"
    config.model.num_units = 8

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-5
    config.learning_rate.peak = 0.48
    config.learning_rate.warmup_epochs = 5

    config.data.name = "cifar100"
    config.data.image_size = 32
    config.data.augment = "crop_flip"
    config.data.crop_padding = 4
    return config
