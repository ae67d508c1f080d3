"""Checkpoints: resumed to the bit after signals and kills, and read by other processes."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import Sinusoid
from metajax.train.checkpoints import Checkpoint, Checkpoints
from tests.train.runs import (
    assert_equal,
    assert_same_run,
    at_step,
    fit,
    initial,
    learner,
    lines,
    listed,
    loss,
    own,
    validation,
)


def interrupt():
    raise RuntimeError("interrupted")


def test_resuming_equals_one_go_bit_for_bit(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        at_step(patch, 60, interrupt)
        with pytest.raises(RuntimeError, match="interrupted"):
            fit(workdir=tmp_path / "parts", validation=validation())
    assert sorted(listed(tmp_path / "parts")) == ["20", "40"]
    resumed = fit(workdir=tmp_path / "parts", validation=validation())
    assert_same_run(resumed, whole[1])
    assert int(resumed.state.step) == 60
    assert lines(tmp_path / "parts") == lines(whole[0])


ROOT = str(Path(__file__).parents[2])


ENDLESS = """
import sys
sys.path.insert(0, {root!r})
from tests.train.runs import fit, validation
result = fit(workdir={workdir!r}, validation=validation(), num_meta_steps=10**6,
             checkpoint_every=500, validate_every=500)
print("stopped by", result.stopped_by, "at", int(result.state.step))
"""


def interrupted(workdir, number):
    """Starts a run in a process of its own, signals it after a new checkpoint: code and output."""
    before = set(listed(workdir))
    script = ENDLESS.format(root=ROOT, workdir=str(workdir))
    environment = {**os.environ, "PYTHONHASHSEED": str(int(number))}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    while not set(listed(workdir)) - before:
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    return process.returncode, output


def test_processes_that_were_stopped_and_killed_are_continued_bit_for_bit(tmp_path):
    code, output = interrupted(tmp_path / "parts", signal.SIGTERM)
    assert code == 0
    assert "stopped by SIGTERM" in output
    assert output.split("at ")[1].strip() in listed(tmp_path / "parts")
    assert interrupted(tmp_path / "parts", signal.SIGKILL) == (-signal.SIGKILL, "")

    steps = max(map(int, listed(tmp_path / "parts"))) + 20
    settings = {"validation": validation(), "checkpoint_every": 500, "validate_every": 500}
    settings |= {"num_meta_steps": steps}
    resumed, whole = (fit(workdir=tmp_path / run, **settings) for run in ("parts", "whole"))
    assert_same_run(resumed, whole)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    # So what tells runs apart is the same in every process.
    assert train.read_config(tmp_path / "parts") == train.read_config(tmp_path / "whole")


def test_keys_in_a_state_are_restored(tmp_path):
    mine = own(inner_state={"typed": jax.random.key(3), "legacy": jax.random.PRNGKey(4)})
    fit(mine, workdir=tmp_path, num_meta_steps=20)
    resumed, whole = (fit(mine, workdir=where, num_meta_steps=40) for where in (tmp_path, None))
    assert (resumed.state.inner_state["typed"] == jax.random.key(3)).all()
    assert_equal(
        *(
            result.state._replace(inner_state=result.state.inner_state["legacy"])
            for result in (resumed, whole)
        )
    )
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    found = train.load_meta_params(tmp_path, adapt, initial())
    assert_equal(found, resumed.best.meta_params)


def test_a_state_of_the_model_is_saved_and_loaded(tmp_path):
    def stateful_loss(model, batch, rng):
        value, metrics = loss(model.params, batch, rng)
        return value, metrics, 0.9 * model.state + 0.1 * batch[1].mean()

    start = metajax.Stateful(initial(), jnp.zeros(()))
    maml = metajax.maml(stateful_loss, optax.sgd(0.01), optax.adam(1e-3), num_steps=2)
    whole = fit(maml, params=start)
    for length in (30, 60):
        resumed = fit(maml, params=start, workdir=tmp_path, num_meta_steps=length)
    assert_equal(whole.state, resumed.state)
    assert float(whole.state.inner_state.model) != 0
    loaded = train.load_meta_params(tmp_path, maml.inner, start)
    assert float(loaded.params.state) == float(whole.best.inner_state.model)
    key = jax.random.key(0)
    adapted, _ = maml.inner.apply(loaded, Sinusoid().sample(key).support, key)
    assert isinstance(adapted, metajax.Stateful)


def test_parameters_to_load_into_may_be_numbers(tmp_path):
    result = fit(own(), params={"a": 1.0}, workdir=tmp_path, num_meta_steps=10)
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    for like in ({"a": 1.0}, {"a": np.float64(1.0)}):
        assert_equal(train.load(tmp_path, own(), like).state, result.state)
        assert_equal(train.load_meta_params(tmp_path, adapt, like), result.best.meta_params)


def test_a_checkpoint_of_another_model_is_refused(whole):
    workdir, _ = whole
    other = {**initial(), "v": jnp.ones((8, 2))}
    with pytest.raises(train.WorkdirError, match=r"does not fit.*\n.*/v: float32\[8, 1\] there"):
        train.load(workdir, learner(), other)
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    with pytest.raises(train.WorkdirError, match=r"\n  params/v: float32\[8, 1\] there"):
        train.load_meta_params(workdir, adapt, other)
    learned = metajax.inner_loop(loss, metajax.learned_step_sizes(0.1), num_steps=2)
    with pytest.raises(train.WorkdirError, match=r"  inner/w: absent there"):
        train.load_meta_params(workdir, learned, initial())


def test_the_best_meta_parameters_are_read_without_the_outer_loop(whole):
    workdir, result = whole
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    assert_equal(train.load_meta_params(workdir, adapt, initial()), result.best.meta_params)


LOAD = """
import sys
sys.path.insert(0, {root!r})
import jax, metajax, numpy as np, optax
from metajax import train
from metajax.tasks import Sinusoid
from tests.train.runs import initial, loss, own
assert jax.device_count() == 1
adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
found = train.load_meta_params({workdir!r}, adapt, initial())
jax.tree.map(np.testing.assert_array_equal, found,
             train.load({workdir!r}, own(), initial()).best.meta_params)
print(*np.asarray(found.params["v"]).ravel().tolist())
"""


def test_a_single_device_reads_what_several_saved(tmp_path):
    best = fit(own(), workdir=tmp_path, num_meta_steps=20, mesh=metajax.task_mesh(3)).best
    assert len(best.step.devices()) == 3
    script = LOAD.format(root=ROOT, workdir=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [float(number) for number in done.stdout.split()]
    np.testing.assert_array_equal(found, np.ravel(best.meta_params.params["v"]))


def test_load_without_a_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoints"):
        train.load(tmp_path, learner(), initial())
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    with pytest.raises(FileNotFoundError, match="no checkpoints"):
        train.load_meta_params(tmp_path, adapt, initial())


def test_checkpoints_leave_nothing_in_memory(tmp_path):
    state = learner().init(initial())
    checkpoints = Checkpoints(tmp_path)

    def save(steps):
        for step in steps:
            at = state._replace(step=jnp.int32(step))
            checkpoints.save(Checkpoint(at, at, {}))
        gc.collect()
        return sys.getallocatedblocks()

    before = save(range(20))
    assert save(range(20, 60)) - before < 400  # TensorStore's leak would be 10,000 and more
    checkpoints.close()
