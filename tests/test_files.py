"""A text file is written whole or not at all."""

import os
import pathlib

import pytest

from rmn_jax.errors import UserError
from rmn_jax.files import write_bytes, write_file


def test_a_file_is_created_and_replaced(tmp_path):
    path = tmp_path / "file.json"
    write_file(path, "one")
    assert path.read_text() == "one"
    write_file(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf_8(tmp_path):
    write_file(tmp_path / "file.json", "Zürich")
    assert (tmp_path / "file.json").read_bytes() == b"Z\xc3\xbcrich"


@pytest.mark.parametrize("broken", ["write_text", "replace"])
@pytest.mark.parametrize("old", ["old", None], ids=["replaced", "created"])
def test_a_failed_write_leaves_the_old_file_and_no_partial_one(broken, old, tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    if old is not None:
        path.write_text(old)
    write_text = pathlib.Path.write_text

    def fail(self, argument, **options):
        if broken == "write_text":
            write_text(self, argument[:3], **options)  # the disk is full after three characters
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, "new text")
    monkeypatch.undo()
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == ([] if old is None else [(path, old)])


def test_a_folder_is_not_replaced(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError):
        write_file(folder, "text")
    assert folder.is_dir() and list(tmp_path.iterdir()) == [folder]


def test_a_missing_folder_is_an_error_and_is_not_created(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "absent" / "file", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_written_to_and_not_replaced():
    device = pathlib.Path(os.devnull)
    write_file(device, "text")
    write_bytes(device, b"bytes")
    assert device.is_char_device()


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("broken", ["write_bytes", "replace"])
def test_an_interrupted_binary_file_leaves_the_old_one(broken, stopped, tmp_path, monkeypatch):
    path = tmp_path / "file.rmn"
    path.write_bytes(b"old")
    whole = pathlib.Path.write_bytes

    def fail(self, argument):
        if broken == "write_bytes":
            whole(self, argument[:2])
        raise stopped

    monkeypatch.setattr(pathlib.Path, broken, fail)
    with pytest.raises(KeyboardInterrupt if stopped is KeyboardInterrupt else UserError):
        write_bytes(path, b"new content")
    monkeypatch.undo()
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == [(path, b"old")]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]
