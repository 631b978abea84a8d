"""A checkpoint that is not whole is passed over, said so, and kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.errors import UserError
from rmn_jax.train import checkpoint
from rmn_jax.train.checkpoint import Checkpoints, Position
from rmn_jax.train.state import Metrics, TrainState


def make_state(value):
    return TrainState(
        update=jnp.int32(value),
        params={"stage1": {"kernel": jax.random.normal(jax.random.key(value), (300, 70))}},
        batch_stats={"stage1": {"mean": jnp.arange(3.0)}},
        memory={},
        opt_state=(jnp.full((4,), value, jnp.bfloat16),),
        metrics=Metrics.zeros(0, 2),
    )


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    kept = Checkpoints(tmp_path, keep=3, warn=said.append)
    for update in (10, 20):
        kept.save(make_state(update), Position(update, 1))
    return kept


def restore(checkpoints):
    return checkpoints.restore(lambda position: make_state(0))


def newest(tmp_path):
    return tmp_path / "checkpoints" / "update_00000020.step1"


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(folder):
    path = largest_file(folder / "arrays")  # the kernel: random numbers do not compress
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = largest_file(folder / "arrays")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def link_out(folder):
    path = largest_file(folder / "arrays")
    elsewhere = folder.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def change_type(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["leaves"]["opt_state/0"]["dtype"] = "float32"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def misspell(key):
    def damage(folder):
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace(f'"{key}"', f'"{key}s"', 1))

    return damage


DAMAGE = {
    "a flipped bit": flip_a_bit,
    "a truncated file": truncate,
    "not finished": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"leaves": {"a'),
    "a symbolic link": link_out,
    "another type": change_type,
    "a manifest without a digest": misspell("digest"),
    "a manifest without a shape": misspell("shape"),
}


def test_what_is_saved_comes_back(checkpoints):
    state, position = restore(checkpoints)
    assert position == Position(20, 1)
    expected = make_state(20)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, expected)


# Orbax leaves tasks behind when a read fails half way; their end is reported as a warning, here or later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_kept(checkpoints, tmp_path, said, damage):
    damage(newest(tmp_path))
    state, position = restore(checkpoints)
    assert position.update == 10 and int(state.update) == 10
    assert len(said) == 1 and "update_00000020.step1 is damaged" in said[0]
    assert newest(tmp_path).is_dir()
    checkpoints.save(make_state(20), Position(20, 1))  # the run gets there again
    assert restore(checkpoints)[1].update == 20
    assert (tmp_path / "checkpoints" / "update_00000020.step1.damaged1").is_dir()


def test_an_empty_folder_is_no_checkpoint(checkpoints, tmp_path, said):
    (tmp_path / "checkpoints" / "update_00000030.step4").mkdir()
    (tmp_path / "checkpoints" / "7").mkdir()
    assert restore(checkpoints)[1].update == 20
    assert len(said) == 1 and "not finished" in said[0]


def test_a_run_killed_in_its_first_saving_begins_anew(tmp_path, said):
    checkpoints = Checkpoints(tmp_path, 2, said.append)
    cut = tmp_path / "checkpoints" / "update_00000010.step1"
    (cut / "arrays.orbax-checkpoint-tmp").mkdir(parents=True)
    assert restore(checkpoints) is None
    assert len(said) == 1 and "was not finished" in said[0]
    checkpoints.save(make_state(10), Position(10, 1))
    assert restore(checkpoints)[1].update == 10
    assert (cut.with_name(cut.name + ".damaged1")).is_dir()


def test_all_damaged_is_said_and_nothing_is_started_over(checkpoints, tmp_path):
    for folder in (tmp_path / "checkpoints").iterdir():
        flip_a_bit(folder)
    with pytest.raises(UserError, match="no checkpoint .* verifies"):
        restore(checkpoints)


def test_none_is_none(tmp_path, said):
    assert restore(Checkpoints(tmp_path, 2, said.append)) is None and not said


def test_the_oldest_good_ones_go(checkpoints, tmp_path):
    for update, step in ((30, 3), (30, 4), (40, 4)):
        checkpoints.save(make_state(update), Position(update, step))
    assert checkpoints.positions() == [Position(40, 4), Position(30, 4), Position(30, 3)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_one_neither_counts_as_good_nor_goes(tmp_path, said):
    kept = Checkpoints(tmp_path, keep=1, warn=said.append)
    Checkpoints(tmp_path, keep=2, warn=said.append).save(make_state(10), Position(10, 1))
    Checkpoints(tmp_path, keep=2, warn=said.append).save(make_state(20), Position(20, 1))
    flip_a_bit(newest(tmp_path))
    assert restore(kept)[1].update == 10
    kept.save(make_state(13), Position(13, 1))  # older than the damaged one
    kept.save(make_state(30), Position(30, 1))
    assert kept.positions() == [Position(30, 1)]
    assert restore(kept)[1].update == 30
    assert (tmp_path / "checkpoints" / "update_00000020.step1.damaged1").is_dir()


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(checkpoints, monkeypatch):
    class Full(checkpoint.ocp.PyTreeCheckpointer):
        def save(self, *arguments, **settings):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "PyTreeCheckpointer", Full)
    with pytest.raises(UserError, match="No space left on device. Make room"):
        checkpoints.save(make_state(30), Position(30, 1))
    monkeypatch.undo()
    assert restore(checkpoints)[1].update == 20
