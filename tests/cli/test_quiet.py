"""One line for what the machine or the user does, a traceback for a bug, and nothing else on stderr."""

import errno
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from rmn_jax.cli import main as program
from rmn_jax.cli.arguments import Command
from rmn_jax.errors import as_line

ROOT = pathlib.Path(__file__).parent.parent.parent
EXPECTED = {
    "full": (OSError(errno.ENOSPC, "No space left on device", "run/x"), "run/x: No space left on device. Make room"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", b"run/x"), "run/x: Read-only file system"),
    "long name": (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), "File name too long"),
    "memory": (MemoryError(), "the memory is full. Lower config.batch_size"),
    "device memory": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "the memory is full"),
    "no GPU": (RuntimeError("Unable to initialize backend 'cuda'"), "JAX_PLATFORMS"),
}


def run(monkeypatch, error):
    def fail(arguments, overrides):
        raise error

    monkeypatch.setitem(program.COMMANDS, "fail", Command("fail", fail, lambda parser: None))
    return program.main(["fail"])


@pytest.mark.parametrize("name", EXPECTED)
def test_an_expected_exception_is_one_line(name, monkeypatch, capfd):
    error, line = EXPECTED[name]
    assert run(monkeypatch, error) == 2
    captured = capfd.readouterr()
    assert line in captured.err and len(captured.err.splitlines()) == 1 and captured.err.startswith("rmn: ")


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), OSError(errno.EBADF, "x")])
def test_a_bug_shows_its_traceback_and_says_so(error, monkeypatch, capfd):
    assert as_line(error) is None
    assert run(monkeypatch, error) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("rmn: this is a bug of rmn_jax; please report")


def test_a_terminal_that_is_gone_changes_nothing(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert run(monkeypatch, MemoryError()) == 2


def shell(line):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True)


PRINTS = """
import sys
from rmn_jax.cli import main as program
from rmn_jax.cli.arguments import Command
print_lines = lambda arguments, words: [print("{}") for _ in range(99999)] and {}
program.COMMANDS["lines"] = Command("print", print_lines, lambda parser: None)
program.run()
"""


def test_standard_output_that_is_full_gone_or_closed(tmp_path):
    (tmp_path / "prints.py").write_text(PRINTS)
    lines, rmn = f"{sys.executable} {tmp_path}/prints.py lines", f"{sys.executable} -m rmn_jax"
    full = shell(f"{lines} > /dev/full")
    assert full.returncode == 2 and full.stderr.splitlines() == [
        "rmn: standard output: No space left on device. Make room and start again; what was saved stays."
    ]
    head = shell(f"set -o pipefail; {lines} | head -n1")
    assert head.returncode == 0 and head.stderr == "" and json.loads(head.stdout) == {}
    assert shell(f"{rmn} eval --workdir=/nowhere >&- 2>&-").returncode == 2
    assert shell(f"{rmn} eval --workdir=/nowhere 2>/dev/full").returncode == 2


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, "-m", "rmn_jax", "train", "--config=digits", f"--workdir={tmp_path / 'run'}"]
    for platform in ("cuda", "no_such_platform"):
        environment = {**os.environ, "JAX_PLATFORMS": platform}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        lines = ended.stderr.splitlines()
        assert ended.returncode == 2 and len(lines) == 1 and "JAX_PLATFORMS asks for" in lines[0]
    assert not (tmp_path / "run").exists()


WRONG = {
    "JAX_COORDINATOR_ADDRESS": ["localhost", "localhost:port", ":1", "localhost:99999", "localhost:-1", "localhost:٣"],
    "JAX_NUM_PROCESSES": ["two", "-1", "1.5", ""],
    "JAX_PROCESS_ID": ["first", "-1"],
}


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_an_address_or_number_of_processes_that_is_none_is_one_line(variable, value, monkeypatch, capfd, tmp_path):
    good = {"JAX_COORDINATOR_ADDRESS": "localhost:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    for name, text in {**good, variable: value}.items():
        monkeypatch.setenv(name, text)
    page = ROOT / "configs" / "digits.py"
    assert program.main(["train", f"--config={page}", f"--workdir={tmp_path / 'run'}", "--distributed"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{variable} is {value!r}" in lines[0]
    assert not (tmp_path / "run").exists()


def test_64_bit_mode_changes_nothing_or_is_refused(tmp_path, capfd):
    line = "import jax; jax.config.update('jax_enable_x64', True); from rmn_jax.cli.main import main; import sys;"
    line += f" sys.exit(main(['train', '--config=configs/digits.py', '--workdir={tmp_path}/run']))"
    refused = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "JAX_ENABLE_X64 is on" in refused.stderr
    code = "import rmn_jax.cli.main as m, sys; m.main = lambda argv: int(__import__('jax').config.jax_enable_x64)"
    ended = subprocess.run([sys.executable, "-c", f"{code}; m.run()"], env={**os.environ, "JAX_ENABLE_X64": "1"})
    assert ended.returncode == 0
