"""Checkpoints: resume to the bit, killed processes and signals, what reads them."""

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
from metajax.train.signals import StopRequest
from metajax.train.writers import MetricWriter
from tests.train.runs import assert_equal, fit, initial, learner, loss, own, validation


def at_step(monkeypatch, step, act):
    """Calls `act` when the metrics of a meta-step are to be written."""
    write = MetricWriter.write

    def acting(self, at, metrics):
        if at == step:
            act()
        write(self, at, metrics)

    monkeypatch.setattr(MetricWriter, "write", acting)


def interrupt():
    raise RuntimeError("interrupted")


def test_resuming_equals_one_go_bit_for_bit(tmp_path, monkeypatch):
    whole = fit(workdir=tmp_path / "whole", validation=validation())
    with monkeypatch.context() as patch:
        at_step(patch, 60, interrupt)
        with pytest.raises(RuntimeError, match="interrupted"):
            fit(workdir=tmp_path / "parts", validation=validation())
    assert sorted(listed(tmp_path / "parts")) == ["20", "40"]
    resumed = fit(workdir=tmp_path / "parts", validation=validation())
    assert_same_run(resumed, whole)
    assert int(resumed.state.step) == 60
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def assert_same_run(one, other):
    assert_equal((one.state, one.best), (other.state, other.best))
    assert (one.best_step, one.best_metrics) == (other.best_step, other.best_metrics)


def lines(workdir):
    return [{**line, "seconds": 0} for line in train.read_metrics(workdir)]


def listed(workdir):
    path = workdir / "checkpoints"
    return [name for name in os.listdir(path) if name.isdigit()] if path.exists() else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns(tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        at_step(patch, 30, lambda: signal.raise_signal(number))
        stopped = fit(workdir=tmp_path, validation=validation())
    assert (stopped.stopped_by, int(stopped.state.step)) == (number.name, 30)
    assert sorted(listed(tmp_path)) == ["20", "30"]
    resumed = fit(workdir=tmp_path, validation=validation())
    assert resumed.stopped_by is None
    assert_same_run(resumed, fit(validation=validation()))


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    at_step(monkeypatch, 30, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        fit(workdir=tmp_path)
    assert listed(tmp_path) == ["20"]


def test_a_signal_at_any_moment_is_saved_before_it_is_obeyed(tmp_path, monkeypatch):
    # It arrives just after the loop has looked.
    looks = iter([None, "SIGTERM"])
    monkeypatch.setattr(StopRequest, "received", property(lambda self: next(looks)), raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: vars(self).update(_previous={}))
    stopped = fit(workdir=tmp_path)
    assert (stopped.stopped_by, int(stopped.state.step)) == ("SIGTERM", 20)
    assert listed(tmp_path) == ["20"]


def test_a_signal_at_the_last_step_stops_nothing(monkeypatch, tmp_path):
    at_step(monkeypatch, 20, lambda: signal.raise_signal(signal.SIGTERM))
    assert fit(workdir=tmp_path, num_meta_steps=20).stopped_by is None


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


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(workdir=tmp_path)
    other = {**initial(), "v": jnp.ones((8, 2))}
    with pytest.raises(train.WorkdirError, match=r"does not fit.*\n.*/v: float32\[8, 1\] there"):
        train.load(tmp_path, learner(), other)
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    with pytest.raises(train.WorkdirError, match=r"\n  params/v: float32\[8, 1\] there"):
        train.load_meta_params(tmp_path, adapt, other)
    learned = metajax.inner_loop(loss, metajax.learned_step_sizes(0.1), num_steps=2)
    with pytest.raises(train.WorkdirError, match=r"  inner/w: absent there"):
        train.load_meta_params(tmp_path, learned, initial())


def test_the_best_meta_parameters_are_read_without_the_outer_loop(tmp_path):
    best = fit(workdir=tmp_path, validation=validation()).best
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    assert_equal(train.load_meta_params(tmp_path, adapt, initial()), best.meta_params)


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


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    first = fit(workdir=tmp_path, validation=validation())
    second = fit(workdir=tmp_path, validation=validation())
    assert_equal(first.state, second.state)
    assert first.wall_seconds == second.wall_seconds


def test_a_half_written_line_is_dropped_on_resume(tmp_path):
    fit(workdir=tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "train/que')
    fit(workdir=tmp_path)
    assert [line["step"] for line in train.read_metrics(tmp_path)][-1] == 60


def test_load_without_a_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        train.load(tmp_path, learner(), initial())
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        train.load_meta_params(tmp_path, adapt, initial())
