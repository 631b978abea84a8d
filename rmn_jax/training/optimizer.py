"""The optimizer and the learning-rate schedule of a configuration, from optax."""

import optax
from ml_collections import ConfigDict


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up, then cosine, over all four phases. ``final`` would be the rate of a step after the last one.

    With ``scaling == "linear"`` the peak rate is multiplied by ``batch_size / reference_batch``.
    """
    settings = config.learning_rate
    peak = settings.peak
    if settings.scaling == "linear":
        peak *= config.batch_size / settings.reference_batch
    total = config.epochs * steps_per_epoch
    warmup = min(int(settings.warmup_epochs * steps_per_epoch), total - 1)
    return optax.warmup_cosine_decay_schedule(settings.initial, peak, warmup, total, settings.final)


def make_optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """SGD with momentum (VGG, ResNet) or RMSprop (EfficientNet); weight decay is added to the gradient (L2)."""
    settings = config.optimizer
    rate = learning_rate(config, steps_per_epoch)
    if settings.name == "sgd":
        rule = optax.sgd(rate, momentum=settings.momentum)
    else:
        rule = optax.rmsprop(
            rate, decay=settings.decay, eps=settings.epsilon, momentum=settings.momentum, initial_scale=1.0
        )
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), rule)
