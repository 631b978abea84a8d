"""A run folder vouches for itself: an edit of any of its files is named by every way to open a run, or changes nothing.

The folder is that of a plain ResNet-8 on the digits with two checkpoints, steps 1 and 2 of 4, of states that differ.
"""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest

from rmn_jax.cli.main import main
from rmn_jax.cli.pages import load_config
from rmn_jax.errors import UserError
from rmn_jax.inference.predict import load_trained
from rmn_jax.training import phases
from rmn_jax.training.checkpoint import Position
from rmn_jax.training.run import Run, open_run
from rmn_jax.training.run_folder import DATASET_FILE, describe_run, difference, read_info, read_run
from rmn_jax.training.state import Phase

PAGE = "configs/digits.py:plain"
SETTINGS = ["batch_size=720", "epochs=4", "model.width=2", "learning_rate.warmup_epochs=1", "checkpoint.every_epochs=1"]
WORDS = [f"--config.{setting}" for setting in SETTINGS]
NEWEST, OLDER = "step_00000002.phase1", "step_00000001.phase1"


def line(step):
    scalars = {"learning_rate": 0.1, "train_loss": 2.0, "train_top1": 0.1, "seconds_per_step": 0.1}
    return {"epoch": step, "step": step, "phase": 1, **scalars, "load": [], "entropy": [], "dead_units": []}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = Run(load_config(PAGE, WORDS), folder, quiet=True)
    run.claim_workdir()
    state = run.initial_state()
    for step in (1, 2):
        run.reporter.record(line(step))
        params = jax.tree.map(lambda leaf, step=step: leaf + step, state.params)
        run.save(state._replace(step=jnp.int32(step), params=params), Phase.STEM)
    return folder


@pytest.fixture
def run_folder(template, tmp_path):
    return pathlib.Path(shutil.copytree(template, tmp_path / "run"))


def begin_training(folder):
    """As ``rmn train`` does with the same command, up to the first step."""
    run = Run(load_config(PAGE, WORDS), folder, quiet=True)
    return phases._begin(run)


OPENINGS = {"train": begin_training, "eval": open_run, "predict": load_trained}
TRUE = {"train": lambda found: int(found[0].step), "eval": lambda found: found[2].step, "predict": lambda found: 2}


def edit(path, key, value):
    stored = json.loads(path.read_text())
    section, _, last = key.rpartition(".")
    inside = stored
    for part in section.split(".") if section else []:
        inside = inside[part]
    if value is ABSENT:
        del inside[last]
    else:
        inside[last] = value
    path.write_text(json.dumps(stored))


ABSENT = object()
TYPES = {"null": None, "true": True, "list": [], "object": {}, "text": "seven", "number": -7.5, "absent": ABSENT}
# Values that another run could have, so that only the record of the checkpoints tells.
CONFIG_EDITS = {
    "method": "rmn",
    "seed": 1,
    "epochs": 5,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "dtype": "bfloat16",
    "model.metric": "cosine",
    "model.router": "hash",
    "model.width": 4,
    "model.backbone": "resnet10",
    "model.num_units": 3,
    "model.attention": "se",
    "optimizer.momentum": 0.8,
    "learning_rate.initial": 1.00001e-5,
    "data.image_size": 16,
    "data.augment": "crop_flip",
    "data.name": "cifar100",
}
INFO_EDITS = {
    "name": "cifar100",
    "image_shape": [16, 16, 3],
    "class_names": [*"102", *"3456789"],
    "mean": [0.305, 0.305, 0.305],
    "std": [0.376, 0.376, 0.376],
    "train_examples": 1436,
    "eval_examples": 359,
    "fingerprint": "other",
    "streamed": True,
}


def one_line(command, folder):
    """The message of an opening that refuses: one line."""
    with pytest.raises(UserError) as refused:
        OPENINGS[command](folder)
    text = str(refused.value)
    assert "\n" not in text and len(text) < 700
    return text


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "damaged" not in path.name)


@pytest.mark.parametrize("command", OPENINGS)
def test_a_whole_folder_is_opened(command, run_folder):
    found = OPENINGS[command](run_folder)
    assert TRUE[command](found) == 2
    variables = found.variables if command == "predict" else found[1 if command == "eval" else 0].variables
    mean = float(jnp.mean(jax.tree.leaves(variables["params"])[0]))
    assert mean == pytest.approx(2, abs=1)


@pytest.mark.parametrize("command", OPENINGS)
@pytest.mark.parametrize("key", CONFIG_EDITS)
def test_a_changed_configuration_is_named(key, command, run_folder):
    before = listing(run_folder)
    edit(run_folder / "config.json", key, CONFIG_EDITS[key])
    text = one_line(command, run_folder)
    assert "config.json" in text and key.rpartition(".")[2] in text
    assert listing(run_folder) == before


@pytest.mark.parametrize("command", OPENINGS)
@pytest.mark.parametrize("key", INFO_EDITS)
def test_a_changed_description_of_the_data_is_named(key, command, run_folder):
    before = listing(run_folder)
    edit(run_folder / "dataset.json", key, INFO_EDITS[key])
    text = one_line(command, run_folder)
    assert "dataset.json" in text and key in text
    assert listing(run_folder) == before


@pytest.mark.parametrize("kind", TYPES)
def test_a_value_of_another_type_is_named_for_every_key(kind, run_folder):
    for name in ("config.json", "dataset.json"):
        original = (run_folder / name).read_text()
        stored = json.loads(original)
        inner = {
            f"{k}.{i}": v for k, section in stored.items() if isinstance(section, dict) for i, v in section.items()
        }
        for key, good in (stored | inner).items():
            if type(good) is type(TYPES[kind]) and not isinstance(good, (list, dict)):
                continue
            if kind == "absent" and key == "streamed":  # release 0.1 had no such key at first
                continue
            if (name, kind) == ("config.json", "absent"):  # an earlier release had fewer keys
                continue
            if kind == "object" and key in ("checkpoint", "optimizer"):  # of no effect, or the same as the defaults
                continue
            edit(run_folder / name, key, TYPES[kind])
            with pytest.raises(UserError, match=f"{name}.*{key}"):
                read_run(run_folder)
            (run_folder / name).write_text(original)


def replace(text):
    def damage(path):
        path.unlink()
        path.write_text(text)

    return damage


def to_pipe(path):
    path.unlink()
    os.mkfifo(path)


def to_folder(path):
    path.unlink()
    path.mkdir()


FILES = {
    "empty": replace(""),
    "a list": replace("[]"),
    "null": replace("null"),
    "a number": replace("3"),
    "half": lambda path: path.write_text(path.read_text()[: path.stat().st_size // 2]),
    "deep": replace("[" * 100_000),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00{}"),
    "NaN": replace('{"epochs": NaN}'),
    "twice": replace('{"epochs": 3, "epochs": 4}'),
    "a pipe": to_pipe,
    "a folder": to_folder,
}


@pytest.mark.parametrize("command", OPENINGS)
@pytest.mark.parametrize("damage", FILES)
def test_a_file_that_is_no_object_is_named(damage, command, run_folder):
    for name in ("config.json", "dataset.json"):
        kept = (run_folder / name).read_text()
        FILES[damage](run_folder / name)
        assert f"{name} " in one_line(command, run_folder)
        shutil.rmtree(run_folder / name) if damage == "a folder" else (run_folder / name).unlink()
        (run_folder / name).write_text(kept)


@pytest.mark.parametrize("command", OPENINGS)
@pytest.mark.parametrize("damage", FILES)
def test_a_manifest_that_is_no_object_is_named_and_an_older_one_used(damage, command, run_folder, capsys):
    FILES[damage](run_folder / "checkpoints" / NEWEST / "manifest.json")
    warnings = []
    if command == "predict":
        load_trained(run_folder, warnings.append)
    else:
        assert TRUE[command](OPENINGS[command](run_folder)) == 1
        warnings = capsys.readouterr().err.splitlines() if command == "eval" else [NEWEST]
    assert NEWEST in " ".join(warnings)
    assert (run_folder / "checkpoints" / NEWEST / "manifest.json").exists()


MANIFEST_EDITS = {"step": 4, "phase": 4, "record": {}, "leaves": {}, "digest": "0" * 32, "more": 1}


@pytest.mark.parametrize("key", MANIFEST_EDITS)
def test_an_edited_manifest_is_passed_over(key, run_folder, capsys):
    edit(run_folder / "checkpoints" / NEWEST / "manifest.json", key, MANIFEST_EDITS[key])
    assert open_run(run_folder)[2] == Position(1, Phase.STEM)
    assert f"{NEWEST} is damaged (its manifest.json was edited" in capsys.readouterr().err


@pytest.mark.parametrize("command", OPENINGS)
def test_a_renamed_checkpoint_is_passed_over_and_kept(command, run_folder):
    checkpoints = run_folder / "checkpoints"
    shutil.copytree(checkpoints / OLDER, checkpoints / "step_00000003.phase1")
    before = listing(run_folder)
    assert TRUE[command](OPENINGS[command](run_folder)) == 2
    assert set(before) <= set(listing(run_folder))


def test_a_renamed_checkpoint_does_not_push_out_a_good_one(run_folder):
    checkpoints = run_folder / "checkpoints"
    shutil.copytree(checkpoints / OLDER, checkpoints / "step_00000004.phase1")
    run, state, _ = open_run(run_folder)
    run.save(state._replace(step=jnp.int32(3)), Phase.STEM)
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        NEWEST,
        "step_00000003.phase1",
        "step_00000004.phase1",
    ]


@pytest.mark.parametrize("command", OPENINGS)
def test_checkpoints_that_changed_places_are_refused_and_stay(command, run_folder):
    checkpoints = run_folder / "checkpoints"
    (checkpoints / NEWEST).rename(checkpoints / "between")
    (checkpoints / OLDER).rename(checkpoints / NEWEST)
    (checkpoints / "between").rename(checkpoints / OLDER)
    before = listing(run_folder)
    assert "no checkpoint" in one_line(command, run_folder)
    assert listing(run_folder) == before


def test_manifests_that_changed_places_are_refused(run_folder):
    first, second = (run_folder / "checkpoints" / name / "manifest.json" for name in (NEWEST, OLDER))
    texts = first.read_text(), second.read_text()
    first.write_text(texts[1])
    second.write_text(texts[0])
    assert "no checkpoint" in one_line("eval", run_folder)


def test_arrays_that_changed_places_are_refused(run_folder):
    checkpoints = run_folder / "checkpoints"
    (checkpoints / NEWEST / "arrays").rename(run_folder / "arrays")
    (checkpoints / OLDER / "arrays").rename(checkpoints / NEWEST / "arrays")
    (run_folder / "arrays").rename(checkpoints / OLDER / "arrays")
    assert "no checkpoint" in one_line("predict", run_folder)


@pytest.mark.parametrize("emptied", [False, True])
def test_lost_checkpoints_are_not_a_fresh_start(emptied, run_folder):
    checkpoints = run_folder / "checkpoints"
    shutil.rmtree(checkpoints)
    if emptied:
        checkpoints.mkdir()
    metrics = (run_folder / "metrics.jsonl").read_text()
    assert "metrics.jsonl tells of 2 steps" in one_line("train", run_folder)
    assert (run_folder / "metrics.jsonl").read_text() == metrics
    assert "no checkpoint" in one_line("eval", run_folder)


def test_a_run_killed_before_its_first_checkpoint_begins_again(run_folder):
    shutil.rmtree(run_folder / "checkpoints")
    (run_folder / "checkpoints").mkdir()
    (run_folder / "metrics.jsonl").write_text(json.dumps(line(1)) + "\n")
    state, phase = begin_training(run_folder)
    assert int(state.step) == 0 and phase is Phase.STEM


@pytest.mark.parametrize("text", ["[]\n", "null\n", '{"step": "2"}\n', '{"step": 2, "phase": 9}\n', '{"step": true}\n'])
def test_metrics_that_cannot_be_read_are_kept_aside(text, run_folder):
    path = run_folder / "metrics.jsonl"
    good = path.read_text()
    path.write_text(text + good)
    begin_training(run_folder)
    assert path.read_text() == good and (run_folder / "metrics.jsonl.damaged1").read_text() == text + good


def test_metrics_in_a_pipe_are_named(run_folder):
    to_pipe(run_folder / "metrics.jsonl")
    assert "metrics.jsonl is not a regular file" in one_line("train", run_folder)


@pytest.mark.parametrize("name", ["[2024] exp", "a\\b", "gs:", "ünï", "*?", "a\nb"])
def test_special_characters_in_a_path_do_no_harm(name, template, tmp_path):
    folder = shutil.copytree(template, tmp_path / name / "run")
    run, state, position = open_run(folder)
    assert position.step == 2
    run.save(state._replace(step=jnp.int32(3)), Phase.STEM)
    assert open_run(folder)[2].step == 3


def test_home_is_expanded(run_folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(run_folder.parent))
    assert open_run("~/run")[2].step == 2 and len(load_trained("~/run").info.class_names) == 10
    assert main(["eval", "--workdir=~/none"]) == 2
    assert f"{run_folder.parent}/none holds no run" in capsys.readouterr().err


def test_only_finite_states_are_saved(run_folder):
    run, state, _ = open_run(run_folder)
    before = listing(run_folder)
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), state.params)
    with pytest.raises(UserError, match="params/.* holds NaN or infinity, so the state is not saved"):
        run.save(state._replace(step=jnp.int32(3), params=broken), Phase.STEM)
    assert listing(run_folder) == before


def test_a_checkpoint_that_cannot_be_read_back_is_not_kept(run_folder, monkeypatch):
    from rmn_jax.training import checkpoint

    run, state, _ = open_run(run_folder)
    before = listing(run_folder)

    def fail(folder, names):
        raise checkpoint.Damaged("an error of the disk")

    monkeypatch.setattr(checkpoint, "_read_arrays", fail)
    with pytest.raises(UserError, match="was written but cannot be read back .an error of the disk"):
        run.save(state._replace(step=jnp.int32(3)), Phase.STEM)
    assert listing(run_folder) == before


def test_a_record_is_compared_by_key(template):
    stored = read_run(template)
    record = describe_run(stored.config, stored.info)
    assert difference(record, record) == ""
    other = describe_run(stored.config, stored.info._replace(mean=(0.3, 0.3, 0.3)))
    assert difference(record, other).startswith(f"{DATASET_FILE}: mean is [0.3, 0.3, 0.3], but")
    # The last bits of the statistics may differ between machines.
    close = tuple(value * (1 + 1e-14) for value in stored.info.mean)
    assert difference(record, describe_run(stored.config, stored.info._replace(mean=close))) == ""
    # Keys that came later are not compared.
    del record["config.json"]["ema"]
    assert difference(record, describe_run(stored.config, stored.info)) == ""
    assert read_info(template.parent) is None
