"""The commands by name, and their help. The names are a contract: scripts depend on them."""

import os
import subprocess
import sys

import pytest

from rmn_jax.cli.arguments import Command
from rmn_jax.cli.commands import COMMANDS
from rmn_jax.cli.main import main

NAMES = [
    "train",
    "eval",
    "predict",
    "analyze",
    "plot",
    "table",
    "import",
    "export",
    "data prepare",
    "data show",
    "data pack",
    "data unpack",
    "bench input",
    "bench conv",
    "bench step",
    "bench latency",
]


def flatten(commands, before=""):
    """``{"data show": command, ...}``"""
    found = {}
    for name, command in commands.items():
        inner = {name: command} if isinstance(command, Command) else flatten(command[1], f"{name} ")
        found |= {f"{before}{key}": value for key, value in inner.items()}
    return found


def test_the_names_are_those_of_the_contract():
    assert list(flatten(COMMANDS)) == NAMES


@pytest.mark.parametrize("name", ["", "data", "bench", *NAMES])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    captured = capsys.readouterr()
    assert stopped.value.code == 0 and captured.err == ""
    assert captured.out.startswith(f"usage: rmn {name}".rstrip())


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_a_command_does(name, capsys):
    command = flatten(COMMANDS)[name]
    assert command.help[0].islower() and not command.help.endswith(".")
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"{command.help[0].upper()}{command.help[1:]}." in text
    assert ("--config.model.num_units" in text) == command.takes_overrides


def test_the_package_runs_as_a_program_and_its_help_does_not_import_jax():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rmn_jax", "--help"],
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert result.stdout.startswith("usage: rmn ")
    listed = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert {name.split()[0] for name in NAMES} <= set(listed)
    imported = [line.rsplit("|")[-1].strip() for line in result.stderr.splitlines()]
    assert "rmn_jax.cli.commands" in imported
    assert not {"jax", "flax", "numpy"} & set(imported)  # JAX takes seconds to import
