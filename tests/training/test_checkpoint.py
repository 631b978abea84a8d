"""A damaged checkpoint is skipped with a warning, and never deleted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.errors import UserError
from rmn_jax.training import checkpoint
from rmn_jax.training.checkpoint import Checkpoints, Position
from rmn_jax.training.state import Metrics, Phase, TrainState


def make_state(value):
    return TrainState(
        step=jnp.int32(value),
        params={"stage1": {"kernel": jax.random.normal(jax.random.key(value), (300, 70))}},
        batch_stats={"stage1": {"mean": jnp.arange(3.0)}},
        memory={},
        opt_state=(jnp.full((4,), value, jnp.bfloat16),),
        metrics=Metrics.zeros(0, 2),
    )


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def checkpoints(tmp_path, warnings):
    kept = Checkpoints(tmp_path, keep=3, warn=warnings.append)
    for step in (10, 20):
        kept.save(make_state(step), Position(step, Phase.STEM))
    return kept


def restore(checkpoints):
    return checkpoints.restore(lambda position: make_state(0))


def newest(tmp_path):
    return tmp_path / "checkpoints" / "step_00000020.phase1"


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(folder):
    path = largest_file(folder / "arrays")  # the kernel, because random numbers do not compress
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = largest_file(folder / "arrays")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def link_outside(folder):
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
    "a symbolic link": link_outside,
    "another type": change_type,
    "a manifest without a digest": misspell("digest"),
    "a manifest without a shape": misspell("shape"),
}


def test_a_saved_state_is_restored_exactly(checkpoints):
    state, position = restore(checkpoints)
    assert position == Position(20, Phase.STEM)
    expected = make_state(20)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, expected)


# When a read fails half way, Orbax leaves tasks behind. Their end is reported as a warning, here or in a later test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_skipped_and_kept(checkpoints, tmp_path, warnings, damage):
    damage(newest(tmp_path))
    state, position = restore(checkpoints)
    assert position.step == 10 and int(state.step) == 10
    assert len(warnings) == 1 and "step_00000020.phase1 is damaged" in warnings[0]
    assert newest(tmp_path).is_dir()
    checkpoints.save(make_state(20), Position(20, Phase.STEM))  # the run reaches this step again
    assert restore(checkpoints)[1].step == 20
    assert (tmp_path / "checkpoints" / "step_00000020.phase1.damaged1").is_dir()


def test_an_empty_folder_is_not_a_checkpoint(checkpoints, tmp_path, warnings):
    (tmp_path / "checkpoints" / "step_00000030.phase4").mkdir()
    (tmp_path / "checkpoints" / "7").mkdir()
    assert restore(checkpoints)[1].step == 20
    assert len(warnings) == 1 and "not finished" in warnings[0]


def test_a_run_killed_while_it_saved_its_first_checkpoint_starts_again(tmp_path, warnings):
    checkpoints = Checkpoints(tmp_path, 2, warnings.append)
    unfinished = tmp_path / "checkpoints" / "step_00000010.phase1"
    (unfinished / "arrays.orbax-checkpoint-tmp").mkdir(parents=True)
    assert restore(checkpoints) is None
    assert len(warnings) == 1 and "was not finished" in warnings[0]
    checkpoints.save(make_state(10), Position(10, Phase.STEM))
    assert restore(checkpoints)[1].step == 10
    assert (unfinished.with_name(unfinished.name + ".damaged1")).is_dir()


def test_if_all_are_damaged_the_run_does_not_start_again(checkpoints, tmp_path):
    for folder in (tmp_path / "checkpoints").iterdir():
        flip_a_bit(folder)
    with pytest.raises(UserError, match="no checkpoint .* verifies"):
        restore(checkpoints)


def test_without_checkpoints_nothing_is_restored(tmp_path, warnings):
    assert restore(Checkpoints(tmp_path, 2, warnings.append)) is None and not warnings


def test_the_oldest_good_checkpoints_are_removed(checkpoints, tmp_path):
    saved = [Position(30, Phase.MEMORIES), Position(30, Phase.ROUTED), Position(40, Phase.ROUTED)]
    for position in saved:
        checkpoints.save(make_state(position.step), position)
    assert checkpoints.positions() == saved[::-1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_neither_counts_as_good_nor_is_removed(tmp_path, warnings):
    kept = Checkpoints(tmp_path, keep=1, warn=warnings.append)
    Checkpoints(tmp_path, keep=2, warn=warnings.append).save(make_state(10), Position(10, Phase.STEM))
    Checkpoints(tmp_path, keep=2, warn=warnings.append).save(make_state(20), Position(20, Phase.STEM))
    flip_a_bit(newest(tmp_path))
    assert restore(kept)[1].step == 10
    kept.save(make_state(13), Position(13, Phase.STEM))  # older than the damaged one
    kept.save(make_state(30), Position(30, Phase.STEM))
    assert kept.positions() == [Position(30, Phase.STEM)]
    assert restore(kept)[1].step == 30
    assert (tmp_path / "checkpoints" / "step_00000020.phase1.damaged1").is_dir()


def test_a_full_disk_is_a_user_error_and_the_last_checkpoint_stays(checkpoints, monkeypatch):
    class Full(checkpoint.ocp.PyTreeCheckpointer):
        def save(self, *arguments, **settings):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "PyTreeCheckpointer", Full)
    with pytest.raises(UserError, match="No space left on device. Make room"):
        checkpoints.save(make_state(30), Position(30, Phase.STEM))
    monkeypatch.undo()
    assert restore(checkpoints)[1].step == 20


@pytest.mark.parametrize("name", ["99", "step_20", "step_00000020.phase5", "step_00000020.phase1 (copy)", "backup"])
def test_a_checkpoint_folder_with_another_name_is_reported_and_kept(checkpoints, tmp_path, warnings, name):
    other = newest(tmp_path).rename(tmp_path / "checkpoints" / name)
    assert restore(checkpoints)[1].step == 10
    assert len(warnings) == 1 and f"{other} is skipped: its name is not that of a checkpoint" in warnings[0]
    assert (other / "manifest.json").is_file()


def test_other_folders_are_not_reported(checkpoints, tmp_path, warnings):
    (tmp_path / "checkpoints" / "notes").mkdir()
    newest(tmp_path).rename(f"{newest(tmp_path)}.damaged1")
    assert restore(checkpoints)[1].step == 10
    assert warnings == []
