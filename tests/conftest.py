"""Eight simulated CPU devices in every test, so that code for several devices always runs and is never skipped."""

import contextlib
import os
import pathlib
import signal
from importlib import metadata

# Most of the suite's time is compilation. Without XLA's optimisation compilation takes a fifth of the time, and small
# sizes still run fast. RMN_TEST_OPTIMIZED=1 tests the code that users get; the demo and the training on Tiny ImageNet
# always do.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if not os.environ.get("RMN_TEST_OPTIMIZED"):
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if metadata.version("jaxlib").startswith("0.10."):  # XLA exits at a flag that it does not know
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# A shell makes what it starts in the background ignore Ctrl-C, nohup makes it ignore SIGHUP; tests send both.
with contextlib.suppress(ValueError):  # not in the main thread
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)

import jax
import numpy as np
import pytest

from rmn_jax.training import step as steps

jax.config.update("jax_platforms", "cpu")
# Many tests compile the same program. They share it through this folder.
COMPILED = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
COMPILED.mkdir(parents=True, exist_ok=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)  # for processes that tests start
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def one_device() -> list:
    return jax.devices()[:1]


_MAKE_MESH = steps.make_mesh


@pytest.fixture(scope="session", autouse=True)
def runs_use_one_device():
    """A run takes all devices by default. Eight simulated ones are slow, so runs get one, also in shared fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "make_mesh", lambda devices=None: _MAKE_MESH(devices or jax.devices()[:1]))
        yield


@pytest.fixture(autouse=True)
def all_devices_for_marked_tests(request, monkeypatch):
    if "all_devices" in request.keywords:
        monkeypatch.setattr(steps, "make_mesh", _MAKE_MESH)
