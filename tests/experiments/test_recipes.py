"""The recipes: the commands of docs/recipes.md are accepted, and fine-tuning goes from one run to the next."""

import pathlib
import shlex

import pytest

from experiments import recipes, runs, suite
from rmn_jax.cli.pages import load_config
from rmn_jax.config import flatten, validate

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "recipes.md"


def commands():
    """The words of each ``rmn`` command of the page."""
    text = PAGE.read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    rmn ")]


def test_the_commands_of_the_page_are_accepted():
    found = [words for words in commands() if any(word.startswith("--config=") for word in words)]
    assert len(found) == 3
    for words in found:
        (page,) = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        overrides = [word for word in words if word.startswith("--config.")]
        for variant in ("", ":plain"):
            config = load_config(str(PAGE.parents[1] / page) + variant, overrides)
            if "import" in words:  # it does so itself
                config.stem_epochs = 0
            validate(config, device_count=1)
            flat = flatten(config)
            for word in overrides:
                key, value = word.removeprefix("--config.").split("=")
                assert str(flat[key]) in (value, f"{value}.0")


def test_the_page_has_the_recipes_of_the_experiment():
    """The same keys; values that belong to the size of a run may differ."""
    scaled = {"learning_rate.peak", "ema", "epochs", "stem_epochs", "data.augment", "learning_rate.warmup_epochs"}
    _, modern, fine_tuning, _ = commands()
    for recipe, words in ((recipes.MODERN, modern), (recipes.FINE_TUNING, fine_tuning)):
        keys = {word.removeprefix("--config.").split("=")[0] for word in words if word.startswith("--config.")}
        mine = {key.replace("__", ".") for key in recipe}
        assert {key for key in mine ^ keys if not key.startswith("data.")} <= scaled


def test_every_recipe_is_valid():
    rows = recipes.rows()
    assert len({row.slug for row in rows}) == len(rows) == 6
    for row in rows:
        validate(row.config, device_count=1)


def test_a_run_that_fine_tunes_begins_from_the_weights_of_the_first(tmp_path, monkeypatch, capsys):
    tiny = {"model__width": 2, "model__num_units": 2, "eval_every_epochs": 1}
    monkeypatch.setattr(recipes, "DIGITS", recipes.DIGITS | tiny)
    words = [f"--workdir={tmp_path}", "--epochs=1", "--seeds", "3", "--rows", "fine-tuning: rmn"]
    summary = recipes.run(suite.parser("Recipes.", "recipes").parse_args(words))
    assert [row["row"] for row in summary["rows"]] == ["Fine-tuning: RMN"]
    (run,) = summary["rows"][0]["runs"]
    assert run["seed"] == 3 and len(run["load"]) == 3
    (folder,) = tmp_path.glob("fine_tuning__rmn-3-*")
    (source,) = tmp_path.glob("digits_0_to_4-3-*")
    assert stem_digests(folder) == stem_digests(source)  # imported, and frozen
    monkeypatch.setattr(runs, "run_training", lambda run: pytest.fail(f"trained {run.workdir}"))
    again = recipes.run(suite.parser("Recipes.", "recipes").parse_args(words))
    assert again["rows"] == summary["rows"]


def stem_digests(folder):
    """The digests of the stem's parameters in the newest checkpoint."""
    paths = runs.checkpoint_paths(folder / "checkpoints")
    leaves = runs.read_manifest(paths[max(paths)], max(paths))["leaves"]
    found = {name: leaf["digest"] for name, leaf in leaves.items() if name.startswith("params/stem/")}
    assert found
    return found
