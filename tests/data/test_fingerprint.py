import numpy as np

from rmn_jax.data import fingerprint


def test_arrays_content_shape_and_type_count():
    base = np.arange(6, dtype=np.int32)
    others = [base.reshape(2, 3), base.astype(np.int64), base + 1]
    assert len({fingerprint.of_arrays(array) for array in [base, *others]}) == 4
    assert fingerprint.of_arrays(base) == fingerprint.of_arrays(base.copy())


def test_files_name_size_and_end_count(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "b").write_bytes(b"y")
    files = [tmp_path / "a", tmp_path / "b"]
    first = fingerprint.of_files(files, tmp_path)
    assert first == fingerprint.of_files(files[::-1], tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 99_999 + b"z")
    assert fingerprint.of_files(files, tmp_path) != first
    assert fingerprint.of_files(files, tmp_path, read_tails=False) == fingerprint.of_files(
        files, tmp_path, read_tails=False
    )
    assert fingerprint.of_files(files[:1], tmp_path) != first
