"""The compilation cache: where it is, how it is moved and turned off, and that a folder that fails costs no run."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from rmn_jax.cli import cache

JAX = "JAX_COMPILATION_CACHE_DIR"


def enabled(environment):
    """The folder that was chosen, without the part that names the machine; None if no cache is set."""
    folder = cache.enable(environment)
    assert folder is None or pathlib.Path(folder).is_dir() and environment[JAX] == folder
    return None if folder is None else pathlib.Path(folder).parent


def test_the_folder_is_the_users_or_another_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert enabled({"XDG_CACHE_HOME": f"{tmp_path}/xdg"}) == tmp_path / "xdg" / "rmn_jax"
    for environment in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert enabled(environment) == tmp_path / ".cache" / "rmn_jax"
    assert enabled({"RMN_CACHE_DIR": "~/moved", "XDG_CACHE_HOME": f"{tmp_path}/xdg"}) == tmp_path / "moved"


@pytest.mark.parametrize("word", ["off", "OFF", "0", "none", "false"])
def test_the_cache_is_turned_off(word):
    environment = {"RMN_CACHE_DIR": word}
    assert cache.enable(environment) is None and environment == {"RMN_CACHE_DIR": word}


@pytest.mark.parametrize("folder", ["/somewhere", ""])
def test_jax_own_variable_counts_first(folder):
    environment = {JAX: folder, "RMN_CACHE_DIR": "/elsewhere"}
    assert cache.enable(environment) is None and environment[JAX] == folder


def test_a_folder_that_cannot_be_used_is_no_cache_and_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (
        "/proc/cache",
        f"{tmp_path}/file",
        f"{tmp_path}/file/below",
        "~nobody_of_this_name/x",
        "a\0b",
        "x" * 999,
    ):
        environment = {"RMN_CACHE_DIR": folder}
        assert cache.enable(environment) is None and JAX not in environment


def test_the_oldest_programs_go_first_and_empty_files_too(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_LARGEST_BYTES", 250)
    folder = pathlib.Path(cache.enable({"RMN_CACHE_DIR": str(tmp_path)}))
    for age, name in enumerate(("new", "middle", "old", "older")):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    (folder / "empty").touch()
    cache.enable({"RMN_CACHE_DIR": str(tmp_path)})
    assert {path.name for path in folder.iterdir()} == {"new", "middle"}


PROGRAM = """
import resource, sys
from rmn_jax.cli import main as program
from rmn_jax.cli.arguments import Command
def work(arguments, words):
    import jax
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if {full}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    hits = []
    jax.monitoring.register_event_listener(lambda name, **facts: hits.append(name) if "cache_hit" in name else None)
    found = float(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64))))
    return dict(found=found, hits=len(hits))
program.COMMANDS["work"] = Command("work", work, lambda parser: None)
program.run()
"""


def compile_in(folder, full=False):
    environment = {name: value for name, value in os.environ.items() if name != JAX}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(full=full), "work"],
        env={**environment, "RMN_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    result = json.loads(ended.stdout)
    assert result["found"] == 64**3
    return result["hits"]


def test_programs_are_found_again_and_a_full_disk_fails_nothing(tmp_path):
    assert compile_in(tmp_path, full=True) == 0  # leaves empty files
    assert compile_in(tmp_path) == 0
    assert compile_in(tmp_path) > 0
    for file in tmp_path.rglob("*-cache"):
        file.write_bytes(file.read_bytes()[:50])
    assert compile_in(tmp_path) == 0
