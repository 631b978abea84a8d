"""Configurations in files: what a run folder stores, what may change when the run goes on, and earlier releases."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from rmn_jax.config.defaults import (
    RENAMED_KEYS,
    TYPE_NAMES,
    default_config,
    explain,
    fits,
    flatten,
    misfit,
    use_current_names,
)
from rmn_jax.errors import UserError
from rmn_jax.files import read_object
from rmn_jax.models.build import BACKBONES, CONFIG_OPTIONS, option_names

# Keys that may differ when a run goes on: the results do not depend on them.
CHANGEABLE_KEYS = (
    "checkpoint",
    "eval_every_epochs",
    "tensorboard",
    "model.module",
    "data.workers",
    "data.data_dir",
    "data.path",
    "data.skip_corrupt",
    "eval_batch_size",
    "shard_units",
)


def to_json(config: ConfigDict) -> str:
    """The resolved configuration, as stored in the run folder."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_dict(stored: dict[str, Any], source: str) -> ConfigDict:
    """A stored configuration, also of an earlier release: new keys get their defaults, renamed ones are mapped.

    Raises:
      UserError: it is not a configuration; ``source`` is where it is from.
    """
    config, wrong = default_config(), _wrong_type(stored)
    if wrong:
        raise UserError(f"{source} is not a run's configuration: {wrong}")
    try:
        config.update(_with_new_names(stored))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{source} is not a run's configuration: {explain(error)}") from None
    wrong = misfit(config)
    if wrong:
        raise UserError(f"{source} is not a run's configuration: {wrong}")
    return config


def from_json(path: pathlib.Path) -> ConfigDict:
    """Reads a stored configuration, also of an earlier release: new keys get their defaults, renamed ones are mapped.

    Raises:
      UserError: no such file, or not a configuration.
    """
    try:
        stored = read_object(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no run (no {path.name}); give the folder of `rmn train`.") from None
    except ValueError as error:
        raise UserError(f"{path} {error}; put the file of the run back.") from None
    return from_dict(stored, str(path))


def _wrong_type(stored: dict[str, Any], known: dict[str, Any] | None = None, before: str = "config.") -> str:
    """The first stored value of another type than the default's, as one line; unknown keys are left to ``misfit``."""
    for key, default in (known or default_config().to_dict()).items():
        value = stored.get(key, default)
        if isinstance(default, dict) and isinstance(value, dict):
            inside = _wrong_type(value, default, f"{before}{key}.")
            if inside:
                return inside
        elif isinstance(default, dict):
            return f"{before}{key} is {value!r}; it must be a section."
        elif not fits(value, type(default)):
            return f"{before}{key} is {value!r}; it must be {TYPE_NAMES[type(default)]}."
    return ""


def _with_new_names(stored: dict[str, Any]) -> ConfigDict:
    """A stored configuration under today's keys and backend names."""
    found = ConfigDict(stored)
    for old, new in RENAMED_KEYS.items():
        section, _, key = old.rpartition(".")
        if key in found.get(section, {}):
            value = found[section][key]
            del found[section][key]
            found.update_from_flattened_dict({new: value})
    model = found.get("model", {})
    if "backend" in model:
        use_current_names(found)
    # Backbones without these options used to ignore them. One of the user's own may not be registered yet.
    for option, unset in CONFIG_OPTIONS.items() if model.get("backbone") in BACKBONES else ():
        if option in model and option not in option_names(model.get("backbone", "")):
            model[option] = unset
    return found


def differences(one: ConfigDict, other: ConfigDict) -> list[str]:
    """The keys in which two configurations differ, as lines with both values; without ``CHANGEABLE_KEYS``."""
    a, b = fixed_keys(one), fixed_keys(other)
    return [
        f"config.{key} is {a.get(key)!r} in the run folder, {b.get(key)!r} now"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def adopt_normalisation(config: ConfigDict, stored: ConfigDict) -> None:
    """Takes over the normalisation of a stored run where a page leaves it open: imported weights bring their own."""
    if not (config.data.mean or config.data.std):
        config.data.mean, config.data.std = stored.data.mean, stored.data.std


def fixed_keys(config: ConfigDict) -> dict[str, Any]:
    """The keys that the results depend on, with their values: all but ``CHANGEABLE_KEYS``, flat as in ``flatten``."""
    free = lambda key: any(key == name or key.startswith(name + ".") for name in CHANGEABLE_KEYS)  # noqa: E731
    return {key: value for key, value in flatten(config).items() if not free(key)}
