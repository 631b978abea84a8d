"""The command line: results are JSON lines, a user error is one line and exit status 2, and no work is lost."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rmn_jax.cli.main import main

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "digits.py")
TINY = [
    "--config.epochs=2",
    "--config.stem_epochs=1",
    "--config.batch_size=720",  # 1,437 images: one step in an epoch
    "--config.learning_rate.warmup_epochs=1",
    "--config.checkpoint.every_epochs=1",
]


def train(workdir, *more):
    return main(["train", f"--config={CONFIG}", f"--workdir={workdir}", *TINY, *more])


def only_line(capsys, status, got):
    """The one line on stderr. It begins with the name of the program; stdout is empty."""
    assert got == status
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("rmn: "), captured.err
    assert captured.out == ""
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    assert train(workdir) == 0
    return workdir


def snapshot(folder):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_training_prints_its_result_and_a_finished_run_prints_it_again(trained, capsys):
    before = snapshot(trained / "checkpoints")
    assert train(trained) == 0  # the run is finished
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) == {"top1", "loss", "epochs", "steps", "workdir"}
    assert result["epochs"] == 2 and result["steps"] == 2 and result["workdir"] == str(trained)
    assert snapshot(trained / "checkpoints") == before
    assert json.loads((trained / "config.json").read_text())["batch_size"] == 720


def test_evaluation_counts_every_example_of_a_split(trained, capsys):
    assert main(["eval", f"--workdir={trained}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) == {"top1", "top5", "loss", "examples"} and result["examples"] == 360
    assert main(["eval", f"--workdir={trained}", "--split=train"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["examples"] == 1437


WRONG_VALUES = {
    "--config.batchsize=32": "unknown key config.batchsize. Did you mean config.batch_size?",
    "--config.model.num_unit=3": "Did you mean config.model.num_units?",
    "--config.model.backbone=resnet19": "config.model.backbone is 'resnet19'",
    "--config.data.name=digit": "digits",
    "--config.model.num_units=0": "config.model.num_units is 0; it must be 1 or more",
    "--config.batch_size=0": "config.batch_size is 0",
    "--config.batch_size=many": "config.batch_size is 'many'; it must be a whole number.",
    "--config.learning_rate.peak=high": "config.learning_rate.peak is 'high'; it must be a number.",
    "--config.batch_size": "write --config.batch_size=VALUE",
    "--config.data=digits": "config.data is a section; set a key in it, say --config.data.",
    "--config.data.name=tfds:": "write tfds:NAME",
    "--config.batch_size=2000": "1437",
    "--config.batch_size=100": "cannot be divided over 8 devices; use a multiple of 8",
    "--config.eval_batch_size=100": "cannot be divided over 8 devices",
    "--config.stem_epochs=2": "it must be from 0 to below config.epochs (2)",
    "--config.method=routed": "config.method is 'routed'; use one of plain, rmn",
    "--config.model.attention=ca": "config.model.attention is 'ca'",
    "--config.model.backend=cuda": "config.model.backend is 'cuda'",
    "--config.model.memory_momentum=1.5": "it must lie between 0 and 1",
    "--config.optimizer.name=adam": "config.optimizer.name is 'adam'",
    "--batch_size=3": "unknown argument '--batch_size=3'",
    "--config.eval_batch_size=1111111111111111111111111": "config.eval_batch_size is 11111111111111111",
    "--config.model.width=4294967295": "config.model.width is 4294967295; it must be 16384 or less",
    "--config.epochs=99999999999": "config.epochs is 99999999999; it must be 2147483647 or less",
}


@pytest.mark.all_devices
@pytest.mark.parametrize("flag", WRONG_VALUES)
def test_a_wrong_value_is_one_line(flag, tmp_path, capsys):
    line = only_line(capsys, 2, train(tmp_path / "run", flag))
    assert WRONG_VALUES[flag] in line
    assert not (tmp_path / "run").exists()


PAGE = """from rmn_jax.config import default_config


def get_config():
    config = default_config()
    {}
    return config
"""
WRONG_PAGES = {
    "misspelt": (PAGE.format("config.model.num_unit = 3"), "line 6: there is no key num_unit. Did you mean num_units?"),
    "misplaced": (PAGE.format("config.num_units = 3"), "no key num_units. Did you mean config.model.num_units?"),
    "unlocked": (PAGE.format("config.unlock().epoch = 3"), "no key config.epoch. Did you mean config.epochs?"),
    "read": (PAGE.format("config.modle.num_units = 3"), "there is no key modle. Did you mean model?"),
    "text": (PAGE.format("config.epochs = 'ten'"), "line 6: TypeError"),
    "none": (PAGE.format("config.epochs = None"), "config.epochs is None; it must be a whole number."),
    "incomplete": (PAGE.format("config.model = {'num_units': 3}"), "config.model.attention is missing"),
    "import": ("import nothing_of_this_name", "line 1: ModuleNotFoundError"),
    "prose": ("# A title\n\nand some prose", "cannot be loaded: SyntaxError"),
    "empty": ("", "must have a get_config() that returns default_config() with changes"),
    "renamed": (PAGE.format("config.data.feed = 'device'"), "line 6: feed is now called config.data.pipeline."),
    "dict": (PAGE.format("return {}"), "must have a get_config() that returns default_config() with changes"),
}


@pytest.mark.parametrize("name", WRONG_PAGES)
def test_a_page_that_cannot_be_used_is_one_line(name, tmp_path, capsys):
    text, message = WRONG_PAGES[name]
    page = tmp_path / f"{name}.py"
    page.write_text(text)
    line = only_line(capsys, 2, main(["train", f"--config={page}", f"--workdir={tmp_path / 'run'}"]))
    assert line.startswith(f"rmn: {page} ") and message in line and "\\" not in line
    assert not (tmp_path / "run").exists()


WRONG_ARGUMENTS = {
    "train --config=PAGE --workdir=": "--workdir is empty",
    "eval --workdir=": "--workdir is empty",
    "data show --config=PAGE --out=": "--out is empty",
    "bench conv --out=": "--out is empty",
    "train --config=PAGE --workdir=run --config.batch_size 128": "write --config.batch_size=128",
    "data show --config=PAGE junk": "unknown argument 'junk' (see rmn data show --help)",
    "bench input --config=PAGE junk": "unknown argument 'junk' (see rmn bench input --help)",
    "bench step --junk": "unknown argument '--junk' (see rmn bench step --help)",
    "bench conv --batch=x": "--batch is x; it must be a whole number of 1 or more (see rmn bench conv --help)",
    "bench conv --backend=cuda": "--backend is 'cuda'; use one of auto, loop, scan",
    "predict --workdir=run --top=0 a.png": "--top is 0; it must be a whole number of 1 or more",
    "predict --workdir=run --top=-1 a.png": "--top is -1; it must be",
    "analyze --workdir=run --top_k=0": "--top_k is 0; it must be",
    "import --backbone=resnet18 --weights=w --workdir=run --num_classes=-3": "--num_classes is -3; it must be",
    "import --backbone=resnet18 --weights=w --workdir=run --config.epochs=3": "--config.epochs needs --config PAGE",
    "import --backbone=resnet18 --weights=w --workdir=run junk": "unknown argument 'junk' (see rmn import --help)",
}


@pytest.mark.parametrize("typed", WRONG_ARGUMENTS)
def test_a_wrong_argument_is_one_line(typed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = only_line(capsys, 2, main(typed.replace("PAGE", CONFIG).split()))
    assert WRONG_ARGUMENTS[typed] in line
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_command_is_one_line(tmp_path, capsys):
    assert "no configuration" in only_line(capsys, 2, main(["train", "--config=nowhere.py", f"--workdir={tmp_path}"]))
    assert "--workdir" in only_line(capsys, 2, main(["train", f"--config={CONFIG}"]))
    assert "COMMAND" in only_line(capsys, 2, main([]))
    assert "trian" in only_line(capsys, 2, main(["trian"]))
    assert "holds no run" in only_line(capsys, 2, main(["eval", f"--workdir={tmp_path}"]))


def test_the_folder_of_another_run_is_refused_and_not_changed(trained, capsys):
    before = snapshot(trained)
    line = only_line(capsys, 2, train(trained, "--config.model.num_units=3"))
    assert "config.model.num_units is 4 in the run folder, 3 now" in line
    assert snapshot(trained) == before


def test_a_run_of_changed_data_is_refused(trained, capsys):
    path = trained / "dataset.json"
    original = path.read_text()
    path.write_text(json.dumps(json.loads(original) | {"fingerprint": "other"}))
    try:
        line = only_line(capsys, 2, train(trained))
        assert "dataset.json: fingerprint" in line or "has changed since the run" in line
    finally:
        path.write_text(original)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("x")
    assert "is a file" in only_line(capsys, 2, train(tmp_path / "file"))
    assert "cannot write to --workdir" in only_line(capsys, 2, train(tmp_path / "file" / "below"))
    assert "cannot write to --workdir" in only_line(capsys, 2, train("/proc/run"))


def command(workdir, *more):
    environment = {**os.environ, "XLA_FLAGS": ""}
    arguments = [
        sys.executable,
        "-m",
        "rmn_jax",
        "train",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *more,
    ]
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_epoch(workdir, epochs, process):
    """Waits until the run has written the lines of ``epochs`` epochs."""
    path, deadline = workdir / "metrics.jsonl", time.time() + 240
    while not path.exists() or len(path.read_text().splitlines()) < epochs:
        assert process.poll() is None, process.stderr.read()
        assert time.time() < deadline
        time.sleep(0.02)


def test_stopped_and_killed_runs_end_with_the_same_numbers(tmp_path):
    settings = ["--config.epochs=12", "--config.stem_epochs=3", "--config.batch_size=144"]
    settings += ["--config.checkpoint.every_epochs=1"]
    whole = command(tmp_path / "whole", *settings)
    output, errors = whole.communicate()
    assert whole.returncode == 0, errors
    phases = [line for line in errors.splitlines() if line.startswith("phase ")]
    assert (
        phases[0] == "phase 1: stem training, epochs 1 to 3"
        and phases[-1] == "phase 4: routed training, epochs 4 to 12"
    )

    workdir = tmp_path / "stopped"
    stopped = command(workdir, *settings)
    wait_for_epoch(workdir, 1, stopped)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate()
    assert stopped.returncode == 75, errors
    assert errors.strip().splitlines()[-1].startswith("rmn: stopped after step")

    killed = command(workdir, *settings)
    wait_for_epoch(workdir, 6, killed)  # well into phase 4
    killed.kill()
    killed.communicate()
    last = command(workdir, *settings)
    again, errors = last.communicate()
    assert last.returncode == 0, errors
    expected, got = json.loads(output.splitlines()[-1]), json.loads(again.splitlines()[-1])
    assert {**got, "workdir": ""} == {**expected, "workdir": ""}
