"""Configuration pages: Python files with a ``get_config()``, and ``--config.key=value`` overrides."""

import difflib
import importlib.machinery
import importlib.util
import pathlib
import site
import sysconfig
import traceback
from collections.abc import Sequence
from typing import cast

from rmn_jax.errors import UserError


def load_config(page: str, overrides: Sequence[str] = ()):
    """The configuration of a page with ``--config.key=value`` overrides.

    Args:
      page: path of a Python file with ``get_config()``, or the name of a page of ``configs/``, which is also in an
        installed package; ``:variant`` at the end is the argument.
      overrides: as on the command line.

    Raises:
      UserError: no such file, a page that cannot be used, no such key, or a value of the wrong type.
    """
    return with_overrides(_load_page(page), overrides)


def with_overrides(config, overrides: Sequence[str]):
    """The configuration, changed by ``--config.key=value`` words.

    Raises:
      UserError: no such key, or a value of the wrong type.
    """
    from rmn_jax.config import set_from_text, use_current_names

    for word in overrides:
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{word} has no value; write {word}=VALUE, with an equals sign.")
        set_from_text(config, key, text)
    use_current_names(config)
    return config


def _packaged(name: str) -> str:
    """The page ``configs/NAME.py`` of the checkout, or of the installed package.

    Raises:
      UserError: there is none of that name.
    """
    pages = {path.stem: path for path in _pages()}
    wanted = pathlib.PurePath(name)
    if wanted.stem in pages and wanted.suffix in ("", ".py") and str(wanted.parent) in (".", "configs"):
        return str(pages[wanted.stem])
    close = difflib.get_close_matches(wanted.stem, pages, n=1) or ["digits"]
    raise UserError(
        f"no configuration {name}: neither a file nor one of the pages {', '.join(sorted(pages))}. "
        f"Did you mean --config={close[0]}?"
    )


def _pages() -> list[pathlib.Path]:
    """The pages of the checkout; if the package is installed, those beside it or in the environment."""
    root = pathlib.Path(__file__).parents[2]
    if (root / "pyproject.toml").is_file():
        return list((root / "configs").glob("*.py"))
    bases = [
        str(root),
        sysconfig.get_path("data"),
        site.getuserbase(),
    ]  # `pip install --target`, an environment, `--user`
    folders = [pathlib.Path(base, "share", "rmn_jax", "configs") for base in bases]
    return next((list(folder.glob("*.py")) for folder in folders if folder.is_dir()), [])


def _load_page(page: str):
    """The result of the page's ``get_config``, locked. A page is arbitrary Python and may raise any exception."""
    from ml_collections import ConfigDict, FrozenConfigDict

    from rmn_jax.config import explain, misfit

    path, *variant = page.split(":", 1)
    if not pathlib.Path(path).is_file():
        path = _packaged(path)
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
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} must have a get_config() that returns default_config() with changes.")
    wrong = misfit(config)
    if wrong:
        raise UserError(f"{path} must return default_config() with changes: {wrong}")
    return config.lock()
