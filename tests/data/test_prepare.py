import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from rmn_jax.data import prepare as prepare_module
from rmn_jax.data.prepare import prepare
from rmn_jax.errors import UserError


def _files(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_preparing_again_does_nothing_even_without_the_source(small_tiny_imagenet, tmp_path):
    first = prepare("tiny_imagenet", str(small_tiny_imagenet), str(tmp_path / "tfds"))
    before = _files(tmp_path / "tfds")
    assert prepare("tiny_imagenet", "", str(tmp_path / "tfds")) == first
    assert _files(tmp_path / "tfds") == before
    assert {path.name for path in (tmp_path / "tfds").iterdir()} == {"tiny_imagenet"}


def test_it_needs_no_tensorflow_and_prints_only_the_result(small_tiny_imagenet, tmp_path):
    code = (
        "import json, sys\n"
        "from rmn_jax.data.prepare import prepare\n"
        "print(json.dumps(prepare('tiny_imagenet', sys.argv[1], sys.argv[2])))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(small_tiny_imagenet), str(tmp_path / "tfds")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"examples": {"train": 400, "validation": 20}}


def test_a_bad_archive_prints_nothing_but_the_error(tmp_path, capfd):
    archive = tmp_path / "tiny-imagenet-200.zip"
    archive.write_bytes(b"no zip")
    with pytest.raises(UserError, match="is not a complete zip file"):
        prepare("tiny_imagenet", str(archive), str(tmp_path / "tfds"))
    captured = capfd.readouterr()
    assert captured.out == "" and "Downloading" not in captured.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_preparation_leaves_no_half_data_set(small_tiny_imagenet, tmp_path, number):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs of a shell ignore SIGINT
        "from rmn_jax.data import decode\n"
        "from rmn_jax.data.tiny_imagenet import builder\n"
        "check = builder.check_jpeg\n"
        "def slow(*arguments):\n"
        "    print('working', flush=True, file=sys.__stdout__)\n"
        "    time.sleep(0.2)\n"
        "    check(*arguments)\n"
        "builder.check_jpeg = slow\n"
        "from rmn_jax.data.prepare import prepare\n"
        "prepare('tiny_imagenet', sys.argv[1], sys.argv[2])\n"
    )
    data_dir = tmp_path / "tfds"
    command = [sys.executable, "-c", code, str(small_tiny_imagenet), str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(20) != 0
    left = list(data_dir.rglob("*"))
    if number == signal.SIGKILL:  # cannot be handled; the next preparation removes the rest
        assert not (data_dir / "tiny_imagenet" / "1.0.0").exists() and left
    else:
        assert left == []
    assert prepare("tiny_imagenet", str(small_tiny_imagenet), str(data_dir))["examples"]["train"] == 400
    assert [path.name for path in (data_dir / "tiny_imagenet").iterdir()] == ["1.0.0"]


def test_too_little_free_space_is_detected_before_the_start(small_tiny_imagenet, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(UserError, match="has 0.0 GB free and preparing takes up to"):
        prepare("tiny_imagenet", str(small_tiny_imagenet), str(tmp_path / "tfds"))
    assert list((tmp_path / "tfds").iterdir()) == []


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(small_tiny_imagenet, tmp_path, monkeypatch):
    from rmn_jax.data.tiny_imagenet import builder

    calls = []

    def full(*_):
        calls.append(1)
        if len(calls) > 100:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder, "check_jpeg", full)
    with pytest.raises(UserError, match="The disk of .* is full; nothing was left behind"):
        prepare("tiny_imagenet", str(small_tiny_imagenet), str(tmp_path / "tfds"))
    assert list((tmp_path / "tfds").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(small_tiny_imagenet, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to .*choose another data_dir"):
        prepare("tiny_imagenet", str(small_tiny_imagenet), str(tmp_path / "file" / "tfds"))


@pytest.mark.parametrize(
    ("name", "source", "line"),
    [
        ("mnist", "x", "Cannot prepare 'mnist': use one of tiny_imagenet, cifar100, imagenet2012"),
        ("tiny_imagenet", "", "give the archive of tiny_imagenet with --source PATH"),
        ("tiny_imagenet", os.devnull + "x", "There is nothing at"),
    ],
)
def test_unusable_arguments_are_one_line(name, source, line, tmp_path):
    with pytest.raises(UserError, match=line):
        prepare(name, source, str(tmp_path))
