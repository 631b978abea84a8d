"""Imports point one way: main -> four_step -> train, analysis, models, data -> layers -> ops, dispatch, routing."""

import ast
import pathlib

import rmn_jax

PACKAGE = pathlib.Path(rmn_jax.__file__).parent

# What each part of the package may import of it; the longest matching name holds.
ALLOWED = {
    "errors": (),
    "routing": (),
    "dispatch": (),
    "ops": ("ops", "dispatch"),
    "layers": ("ops", "dispatch", "routing"),
    "cloning": (),
    "clustering": ("errors",),
    "dropout": ("layers", "errors"),
    "models": ("models", "layers", "dropout", "ops", "dispatch", "routing", "errors"),
    "features": ("models", "layers", "routing", "errors"),
    "data": ("data", "errors"),
    "interop": ("interop", "train", "models", "config", "errors"),
    "config": ("models", "ops", "routing", "errors"),
    "train": ("train", "data", "models", "config", "routing", "errors"),
    "four_step": ("train", "data", "models", "config", "cloning", "clustering", "routing", "errors"),
}
ONLY_JAX = ("routing", "dispatch", "ops")


def imports(path):
    """(module, line) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "rmn_jax":
                yield from ((f"rmn_jax.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_point_one_way():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = part_of(path)
        for module, line in imports(path):
            target = module.split(".")[1] if module.startswith("rmn_jax.") else None
            if target and part in ALLOWED and target not in ALLOWED[part]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_core_imports_jax_alone():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if part_of(path) in ONLY_JAX:
            for module, line in imports(path):
                if module.split(".")[0] not in {
                    "rmn_jax",
                    "jax",
                    "numpy",
                    "typing",
                    "functools",
                    "collections",
                    "math",
                }:
                    wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_tensorflow_at_run_time():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body:  # top level only: preparing a data set may import it inside a function
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            assert not any((name or "").split(".")[0] == "tensorflow" for name in names), path
