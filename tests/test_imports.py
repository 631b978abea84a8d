"""Imports of the package point one way, without a cycle.

    cli -> analysis, interop, inference, bench -> training -> config, data, models -> ops -> routing

The tests read the import statements of all modules, also those inside functions. A room is a folder or a module
directly below ``rmn_jax``.
"""

import ast
import graphlib
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import rmn_jax

PACKAGE = pathlib.Path(rmn_jax.__file__).parent

# The rooms that each room imports, not more and not less. ``errors`` and ``files`` are free to all but routing and ops.
ROOMS = {
    "__main__": {"cli"},
    "api": {"inference", "models", "routing", "training"},
    "cli": {"analysis", "bench", "config", "data", "inference", "interop", "ops", "training"},
    "analysis": {"config", "data", "models", "routing", "training"},
    "bench": {"inference", "models", "ops", "routing", "training"},
    "inference": {"data", "models", "routing", "training"},
    "interop": {"config", "data", "inference", "models", "routing", "training"},
    "training": {"config", "data", "models", "routing"},
    "config": {"models", "ops", "routing"},
    "data": set(),
    "models": {"ops", "routing"},
    "ops": {"routing"},
    "routing": set(),
    "files": {"errors"},
    "errors": set(),
}
FREE = {"errors", "files"}

# What the core may import besides the standard library; a name stands for itself and for what is below it.
CORE = {
    "rmn_jax.routing.memory": {"jax", "numpy", "chex", "rmn_jax.routing"},
    "rmn_jax.routing.layout": {"jax", "numpy", "chex", "rmn_jax.routing"},
    "rmn_jax.routing.routers": {"jax", "numpy", "chex", "flax", "rmn_jax.routing"},
    "rmn_jax.ops": {"jax", "numpy", "chex", "rmn_jax.ops", "rmn_jax.routing.layout"},
}


class Import(NamedTuple):
    """An import in a file: the full name of what is imported, its line, and whether it is inside a function."""

    name: str
    line: int
    in_function: bool


def imports(tree: ast.AST, in_function: bool = False) -> Iterator[Import]:
    """All imports below a node. ``from a.b import c`` gives ``a.b.c``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # A relative import gets a name that no module has, so that every test refuses it.
                yield Import(f"{'.' * node.level}{node.module or ''}.{alias.name}", node.lineno, in_function)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, in_function or function)


def module_name(path: pathlib.Path, package: pathlib.Path) -> str:
    """``rmn_jax.ops.conv`` of ``rmn_jax/ops/conv.py``, and ``rmn_jax.ops`` of ``rmn_jax/ops/__init__.py``."""
    parts = (package.name, *path.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read(package: pathlib.Path) -> dict[str, list[Import]]:
    """The imports of every module of a package."""
    return {module_name(path, package): list(imports(ast.parse(path.read_text()))) for path in package.rglob("*.py")}


def targets(module: str, found: Import, modules: dict[str, list[Import]]) -> set[str]:
    """The modules of the package that an import needs.

    ``from a.b import c`` needs ``a.b``, and ``a.b.c`` if that is a module. One exception: within ``a.b`` it needs
    only the module ``a.b.c``, because Python runs ``a/b/__init__.py`` before any module of ``a.b``. The exception does
    not hold if ``__init__`` binds the name ``c`` to another object.
    """
    parent, _, name = found.name.rpartition(".")
    needed = {found.name} & modules.keys()
    sibling = bool(needed) and module.startswith(f"{parent}.")
    if parent in modules and not (sibling and name not in {bound.name.rpartition(".")[2] for bound in modules[parent]}):
        needed.add(parent)
    return needed - {module}


def graph(modules: dict[str, list[Import]]) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports."""
    return {name: {t for found in each for t in targets(name, found, modules)} for name, each in modules.items()}


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """One import cycle, its first module repeated at the end; empty if there is none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]  # graphlib lists each module before the one that imports it
    return []


@pytest.fixture(scope="module")
def modules() -> dict[str, list[Import]]:
    return read(PACKAGE)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def test_imports_point_one_way(modules):
    found: dict[str, set[str]] = {room(name): set() for name in modules if room(name)}
    for module, needed in graph(modules).items():
        if room(module):
            found[room(module)] |= {room(target) for target in needed} - {room(module), ""}
    core = {name: found[name] for name in ("ops", "routing")}
    others = {name: needed - (FREE - {"errors"} if name == "files" else FREE) for name, needed in found.items()}
    others = {name: needed for name, needed in others.items() if name not in core}
    assert {**others, **core} == ROOMS
    assert cycle(ROOMS) == []


def test_no_modules_import_each_other_in_a_cycle(modules):
    assert cycle(graph(modules)) == []


def test_no_import_is_relative_or_of_a_module_that_does_not_exist(modules):
    wrong = []
    for module, each in modules.items():
        for found in each:
            if found.name.startswith(".") or (found.name.startswith("rmn_jax.") and not targets("", found, modules)):
                wrong.append(f"{module}:{found.line} imports {found.name}")
    assert not wrong, "\n".join(wrong)


def test_the_core_imports_only_jax_numpy_and_chex(modules):
    wrong = []
    for module, each in modules.items():
        allowed = next((names for core, names in CORE.items() if within(module, {core})), None)
        for found in each if allowed else ():
            if found.name.split(".")[0] not in sys.stdlib_module_names and not within(found.name, allowed):
                wrong.append(f"{module}:{found.line} imports {found.name}")
    assert not wrong, "\n".join(wrong)
    assert CORE.keys() <= modules.keys()


def test_tensorflow_is_imported_inside_functions_only(modules):
    # It prepares some data sets. Training and inference run without it.
    wrong = [
        f"{module}:{found.line}"
        for module, each in modules.items()
        for found in each
        if within(found.name, {"tensorflow"}) and not found.in_function
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_imports_nothing_beside_it(modules):
    beside = {"benchmarks", "experiments", "configs", "tests"}
    wrong = [
        f"{name}:{found.line} imports {found.name}"
        for name, each in modules.items()
        for found in each
        if within(found.name, beside)
    ]
    assert not wrong, "\n".join(wrong)


# Small packages, and a cycle that each has.
CYCLES = {
    "none": ({"a": "import p.b", "b": "import numpy"}, set()),
    "two modules": ({"a": "from p.b import f", "b": "from p.a import g"}, {"p.a", "p.b"}),
    "inside a function": ({"a": "from p import b", "b": "def f():\n    import p.a"}, {"p.a", "p.b"}),
    "through __init__": ({"__init__": "from p.a import f", "a": "from p import f"}, {"p", "p.a"}),
    "a sibling beside __init__": ({"__init__": "from p.a import f", "a": "from p import b", "b": ""}, set()),
    "a sibling that __init__ hides": (
        {"__init__": "from p.a import f\nfrom p.c import b", "a": "from p import b", "b": "", "c": ""},
        {"p", "p.a"},
    ),
    "three modules": ({"a": "import p.b", "b": "import p.c", "c": "if True:\n    import p.a"}, {"p.a", "p.b", "p.c"}),
}


@pytest.mark.parametrize(("files", "expected"), CYCLES.values(), ids=CYCLES)
def test_the_check_finds_a_cycle(files, expected, tmp_path):
    (tmp_path / "p").mkdir()
    for name, text in {"__init__": "", **files}.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    edges = graph(read(tmp_path / "p"))
    found = cycle(edges)
    assert set(found) == expected
    assert all(after in edges[before] for before, after in zip(found, found[1:], strict=False))
