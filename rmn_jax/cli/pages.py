"""Configuration pages: Python files with a ``get_config()``, and ``--config.key=value`` overrides."""

import importlib.machinery
import importlib.util
import pathlib
import traceback
from collections.abc import Sequence
from typing import cast

from rmn_jax.errors import UserError


def load_config(page: str, overrides: Sequence[str] = ()):
    """The configuration of a page with ``--config.key=value`` overrides.

    Args:
      page: path of a Python file with ``get_config()``; ``:variant`` at the end is its argument.
      overrides: as on the command line.

    Raises:
      UserError: no such file, a page that cannot be used, no such key, or a value of the wrong type.
    """
    from rmn_jax.config import set_from_text, use_current_names

    config = _load_page(page)
    for word in overrides:
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{word} has no value; write {word}=VALUE, with an equals sign.")
        set_from_text(config, key, text)
    use_current_names(config)
    return config


def _load_page(page: str):
    """The result of the page's ``get_config``, locked. A page is arbitrary Python and may raise any exception."""
    from ml_collections import ConfigDict

    from rmn_jax.config import explain, misfit

    path, *variant = page.split(":", 1)
    if not pathlib.Path(path).is_file():
        raise UserError(f"no configuration {path}; the folder configs/ has pages, for example configs/digits.py")
    loader = importlib.machinery.SourceFileLoader("config_page", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(cast(importlib.machinery.ModuleSpec, spec))
    try:
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config(*variant) if callable(get_config) else None
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"line {lines[-1]}: " if lines else ""
        raise UserError(f"{path} cannot be loaded: {where}{explain(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} must have a get_config() that returns default_config() with changes.")
    wrong = misfit(config)
    if wrong:
        raise UserError(f"{path} must return default_config() with changes: {wrong}")
    return config.lock()
