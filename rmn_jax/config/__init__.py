"""The configuration of a run: every key with its default. The pages in ``configs/`` set the keys that differ."""

from rmn_jax.config.checks import validate
from rmn_jax.config.defaults import (
    VARIANTS,
    default_config,
    explain,
    flatten,
    misfit,
    set_from_text,
    use_current_names,
)
from rmn_jax.config.stored import (
    CHANGEABLE_KEYS,
    adopt_normalisation,
    differences,
    fixed_keys,
    from_dict,
    from_json,
    to_json,
)

__all__ = [
    "CHANGEABLE_KEYS",
    "VARIANTS",
    "adopt_normalisation",
    "fixed_keys",
    "default_config",
    "differences",
    "explain",
    "flatten",
    "from_dict",
    "from_json",
    "misfit",
    "set_from_text",
    "to_json",
    "use_current_names",
    "validate",
]
