"""64 units: the four phases, the memory analysis and its page."""

import jax
import numpy as np
from test_phases import make_config

from rmn_jax.analysis import report
from rmn_jax.analysis.study import study
from rmn_jax.training.phases import run_training
from rmn_jax.training.run import Run

N = 64


def test_64_units_train_through_phase_4_and_make_the_page(tmp_path):
    config = make_config()
    config.epochs, config.batch_size, config.eval_batch_size = 2, 512, 360
    config.model.num_units, config.model.width, config.model.attention = N, 4, "none"
    config.learning_rate.warmup_epochs = 0
    run = Run(config, tmp_path, devices=jax.devices()[:1], quiet=True)
    assert run_training(run)["epochs"] == 2
    state, _ = run.restore()
    for memory in state.memory.values():
        assert len(memory) == N and len(np.unique(memory, axis=0)) > N // 2
    result = report.write(study(run, state, top=2), tmp_path)
    assert [np.sum(stage["load"]) for stage in result["stages"]] == [360] * 3
    page = (tmp_path / "figures" / "report.html").read_text()
    alive = sum(N - stage["dead_units"] for stage in result["stages"])
    assert page.count('<article class="unit card">') == alive > 3
