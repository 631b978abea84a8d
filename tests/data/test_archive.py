import zipfile

import pytest

from rmn_jax.data import archive
from rmn_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    (root / "sub").mkdir(parents=True)
    (root / "marker").write_text("here")
    (root / "sub" / "file").write_bytes(b"content" * 1000)
    return root


@pytest.fixture
def zipped(folder, tmp_path):
    path = tmp_path / "zips" / "set.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as out:
        for name in ("marker", "sub/file"):
            out.write(folder / name, f"set/{name}")
    return path


def test_a_zip_and_its_folder_have_the_same_files(folder, zipped):
    for source in (folder, folder.parent, zipped, zipped.parent):
        opened = archive.open_archive(source, "set", "marker")
        assert opened.names() == ["marker", "sub/file"]
        assert opened.read("sub/file") == b"content" * 1000
        assert "sub/file" in opened.describe("sub/file")


def test_a_folder_without_the_archive_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"neither set\.zip nor its unpacked folder \(no marker in it\)"):
        archive.open_archive(tmp_path, "set", "marker")


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_zip(zipped, keep):
    zipped.write_bytes(zipped.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a complete zip file .*download it again"):
        archive.open_archive(zipped, "set", "marker")


def test_a_damaged_entry_is_named(zipped):
    data = bytearray(zipped.read_bytes())
    data[data.index(b"contentcontent") + 3] ^= 1
    zipped.write_bytes(bytes(data))
    opened = archive.open_archive(zipped, "set", "marker")
    with pytest.raises(UserError, match=r"set\.zip: set/sub/file cannot be read .*CRC"):
        opened.read("sub/file")


@pytest.mark.parametrize("name", ["../evil", "set/../../evil", "/etc/evil", "set\\..\\..\\evil", "C:/evil"])
def test_an_entry_that_points_outside_is_refused(zipped, name):
    with zipfile.ZipFile(zipped, "a") as out:
        out.writestr(name, "x")
    with pytest.raises(UserError, match="points outside its folder; do not use this file"):
        archive.open_archive(zipped, "set", "marker")


def test_an_entry_above_the_limit_is_not_unpacked(zipped, monkeypatch):
    monkeypatch.setattr(archive, "MAX_ENTRY_BYTES", 100)
    opened = archive.open_archive(zipped, "set", "marker")
    with pytest.raises(UserError, match="claims 7,000 bytes"):
        opened.read("sub/file")


@pytest.mark.parametrize("which", ["folder", "zipped"])
def test_a_missing_file_is_named(which, request):
    opened = archive.open_archive(request.getfixturevalue(which), "set", "marker")
    with pytest.raises(UserError, match="absent"):
        opened.read("absent")
