"""What kills, signals, edits and random input do to runs, counted: ``make chaos``. Prints one JSON object.

    kills     a run is killed (SIGKILL) at a random moment, again and again, until it ends; its metrics must be those of
              a run that was left alone
    signals   a stop signal to the process group of a run with decoding workers; it must save, exit with 75 and leave no
              process behind
    edits     one value or file of a finished run folder is changed; opening it must fail in one line, or give the same
              parameters as before
    fuzz      random command lines, JSON files, images and weights; one line or success, never a traceback

All randomness is seeded. ``--scale=0.1`` runs a tenth of each.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
WORDS = ["batch_size=144", "epochs=6", "model.width=2", "learning_rate.warmup_epochs=1", "checkpoint.every_epochs=1"]
STREAM = ["data.pipeline=stream", "data.workers=2", "epochs=40"]
PAGE = "configs/digits.py:plain"


def command(workdir, *settings):
    words = [f"--config.{setting}" for setting in (*WORDS, *settings)]
    return [sys.executable, "-m", "rmn_jax", "train", f"--config={PAGE}", f"--workdir={workdir}", *words]


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


def default_signals():
    # A shell makes what it starts in the background, and nohup what it starts, ignore some of them.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(workdir, *settings):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command(workdir, *settings), cwd=ROOT, preexec_fn=default_signals, **pipes)


def metrics(workdir):
    """The lines of a run without its times."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in lines]


def kills(count, folder, rng):
    """{"kills", "identical"}: each run is killed up to four times."""
    begun = time.monotonic()
    whole = start(folder / "whole")
    whole.communicate()
    seconds, expected, done, identical = time.monotonic() - begun, metrics(folder / "whole"), 0, 0
    while done < count:
        workdir, killed = folder / f"killed{done}", 0
        while killed < min(4, count - done):
            process = start(workdir)
            try:
                process.communicate(timeout=rng.uniform(0.3, 1.1) * seconds)
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                killed += 1
        last = start(workdir)
        last.communicate()
        done += max(killed, 1)
        identical += max(killed, 1) * (last.returncode == 0 and metrics(workdir) == expected)
    return {"kills": done, "identical": identical}


def left_behind(group):
    listed = subprocess.run(["ps", "-eo", "pgid="], capture_output=True, text=True).stdout.split()
    return listed.count(str(group))


def signals(count, folder, rng):
    """{"signals", "saved", "processes_left"}."""
    saved = left = 0
    for number in range(count):
        workdir = folder / f"signal{number}"
        process = start(workdir, *STREAM)
        while process.poll() is None and not metrics(workdir):
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 1))
        chosen = rng.choice(SIGNALS)
        os.killpg(process.pid, chosen)
        _, errors = process.communicate()
        if process.returncode == 75 and "stopped after step" in errors and "Traceback" not in errors:
            saved += 1
        else:
            last = " | ".join(errors.splitlines()[-3:])
            print(f"signal {number}, {chosen.name}: status {process.returncode}, {last[-600:]}", file=sys.stderr)
        time.sleep(2)
        left += left_behind(process.pid)
    return {"signals": count, "saved": saved, "processes_left": left}


def leaves(tree, path=()):
    """Every (path, value) of a JSON tree, sections included."""
    found = [(path, tree)] if path else []
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += leaves(value, (*path, key))
    return found


VALUES = [None, True, 0, -1, 3, 0.5, 1e308, "x", "", [], {}, [1, 2, 3], "cosine", "rmn", 2**40]


def edits(count, folder, rng):
    """{"edits", "refused", "same", "missed", "tracebacks"} over the ways to open a run."""
    import jax
    import numpy as np

    from rmn_jax.cli.main import main
    from rmn_jax.inference.predict import load_trained

    base = folder / "edited"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert main(command(base)[3:]) == 0
    good = [np.asarray(leaf) for leaf in jax.tree.leaves(load_trained(base).variables)]
    names = ["config.json", "dataset.json", *(str(p.relative_to(base)) for p in base.rglob("manifest.json"))]
    counts = {"edits": count, "refused": 0, "same": 0, "passed_over": 0, "missed": 0, "tracebacks": 0}
    for number in range(count):
        run = shutil.copytree(base, folder / f"edit{number}")
        path = run / rng.choice(names)
        stored = json.loads(path.read_text())
        place, _ = rng.choice(leaves(stored))
        inside = stored
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = rng.choice(VALUES)
        path.write_text(json.dumps(stored))
        errors, warned = io.StringIO(), []
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = main(["eval", f"--workdir={run}"])
        counts["tracebacks"] += "Traceback" in errors.getvalue()
        if status == 2 and "Traceback" not in errors.getvalue():
            counts["refused"] += 1
        elif status == 0:
            trained = load_trained(run, warned.append)
            found = [np.asarray(leaf) for leaf in jax.tree.leaves(trained.variables)]
            if len(found) == len(good) and all(map(np.array_equal, found, good)):
                counts["same"] += 1
            else:
                counts["passed_over" if warned else "missed"] += 1
        shutil.rmtree(run)
    return counts


def fuzz(count, folder, rng):
    """{"inputs", "tracebacks"}: command lines, JSON files, images and weights, a quarter each."""
    import numpy as np
    from PIL import Image

    from rmn_jax.cli.main import main
    from rmn_jax.data.crop import random_resized_crop
    from rmn_jax.data.decode import UnreadableImage, decode
    from rmn_jax.errors import UserError
    from rmn_jax.interop.torch_weights import load_torch_weights
    from rmn_jax.training.run_folder import read_run

    pieces = ["train", "eval", "predict", "data", "show", "--workdir=", "--config=x.py", "--top=0", "-", "--", "é"]
    keys, values = ("epochs", "model", "seed", ""), ("", "-1", "nan", "9" * 30)
    pieces += ["a" * 300, *(f"--config.{key}={value}" for key in keys for value in values)]
    seeds = [b'{"model": {"width": 2}}', b"[" * 2000, b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\x89PNG\r\n\x1a\n"]
    jpeg = io.BytesIO()
    Image.fromarray(np.arange(7500, dtype=np.uint8).reshape(50, 50, 3)).save(jpeg, "JPEG")
    run, tracebacks = folder / "fuzzed", 0
    run.mkdir()
    for number in range(count):
        data = bytearray(rng.choice(seeds) + rng.randbytes(rng.randrange(60)))
        if number % 8 == 2:
            data = bytearray(jpeg.getvalue())
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            if number % 4 == 0:
                words = rng.choices(pieces, k=rng.randrange(5))
                words = [word if word != "--config=x.py" else f"--config={folder}/none.py" for word in words]
                with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
                    status = main(words)
                assert status in (0, 2) and "Traceback" not in errors.getvalue(), (words, errors.getvalue())
            elif number % 4 == 1:
                (run / "config.json").write_bytes(data)
                read_run(run)
            elif number % 4 == 2:
                decode(bytes(data))
                random_resized_crop(bytes(data), np.random.default_rng(number), 8, 8)
            else:
                (run / "w.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)
                load_torch_weights(str(run / "w.safetensors"), "resnet18", {"params": {}, "batch_stats": {}})
        except (UserError, UnreadableImage, SystemExit):
            pass
        except Exception as error:
            tracebacks += 1
            print(f"fuzz {number}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return {"inputs": count, "tracebacks": tracebacks}


def run(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts (default: 1)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    results = {}
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        for name in arguments.only:
            part, full = PARTS[name]
            place = pathlib.Path(folder) / name
            place.mkdir()
            begun = time.monotonic()
            results[name] = part(max(1, round(full * arguments.scale)), place, random.Random(arguments.seed))
            print(f"{name}: {results[name]}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps(results))
    return results


PARTS = {"kills": (kills, 60), "signals": (signals, 20), "edits": (edits, 200), "fuzz": (fuzz, 15_000)}

if __name__ == "__main__":
    run()
