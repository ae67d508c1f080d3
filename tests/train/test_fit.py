"""Training runs: resume to the bit, signals, refusals, non-finite values, what is written."""

import json
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
from metajax.tasks import Sinusoid, meta_batch
from tests.train.runs import (
    SETTINGS,
    assert_equal,
    fail_from,
    fit,
    initial,
    learner,
    loss,
    validation,
)


def test_many_steps_in_one_call_are_the_single_updates():
    result = fit(num_meta_steps=4, steps_per_call=2)
    one, state = learner(), learner().init(initial())
    key = jax.random.split(SETTINGS["key"])[0]
    for step in range(4):
        task_rng, update_rng = jax.random.split(jax.random.fold_in(key, step))
        state, _ = jax.jit(one.update)(state, meta_batch(Sinusoid(), 3, task_rng), update_rng)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result.state, state
    )


def test_the_caller_keeps_its_parameters():
    params = initial()
    train.fit(learner(), params, Sinusoid(), **SETTINGS)
    assert np.isfinite(params["w"]).all()  # a donated buffer would raise


def test_resuming_equals_one_go_bit_for_bit(tmp_path):
    # This learner turns non-finite after 40 updates: its run ends as abruptly as a killed one.
    intact = learner(optax.chain(optax.adam(1e-3), fail_from(step=1_000)))
    settings = {"validation": validation(), "config": {}}
    whole = fit(intact, workdir=tmp_path / "whole", **settings)
    broken = learner(optax.chain(optax.adam(1e-3), fail_from(step=40)))
    with pytest.raises(train.NonFiniteError, match="meta-step 42"):
        fit(broken, workdir=tmp_path / "parts", **settings)
    assert sorted(os.listdir(tmp_path / "parts" / "checkpoints")) == ["20", "40"]
    resumed = fit(intact, workdir=tmp_path / "parts", **settings)
    assert int(resumed.state.step) == 60
    assert_equal(resumed.state.meta_params, whole.state.meta_params)
    assert_equal(resumed.best.meta_params, whole.best.meta_params)
    assert resumed.best_step == whole.best_step
    lines = [train.read_metrics(tmp_path / run) for run in ("whole", "parts")]
    for whole_line, line in zip(*lines, strict=True):
        assert {**line, "seconds": 0} == {**whole_line, "seconds": 0}


ROOT = str(Path(__file__).parents[2])
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.train.runs import fit, validation
result = fit(workdir={workdir!r}, validation=validation(), num_meta_steps=20_000,
             checkpoint_every=1_000, validate_every=1_000, steps_per_call=100)
print("stopped by", result.stopped_by, "at", int(result.state.step))
"""


def start(workdir):
    script = SCRIPT.format(root=ROOT, workdir=str(workdir))
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def wait_for_checkpoint(workdir, process):
    deadline = time.monotonic() + 120
    while not any(name.isdigit() for name in listed(workdir)):
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listed(workdir):
    path = workdir / "checkpoints"
    return os.listdir(path) if path.exists() else []


def test_a_killed_process_resumes_bit_for_bit(tmp_path):
    process = start(tmp_path / "killed")
    wait_for_checkpoint(tmp_path / "killed", process)
    process.kill()
    process.communicate()
    for run in ("killed", "whole"):
        process = start(tmp_path / run)
        assert "stopped by None at 20000" in process.communicate()[0]
    states = [train.load(tmp_path / run, learner(), initial()) for run in ("killed", "whole")]
    assert_equal(states[0].state, states[1].state)
    assert_equal(states[0].best, states[1].best)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns(tmp_path, number):
    process = start(tmp_path)
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    step = int(output.split("at ")[1])
    assert f"stopped by {number.name}" in output
    assert str(step) in listed(tmp_path)


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    fit(workdir=tmp_path, config={"rate": 0.1, "seed": 0})
    with pytest.raises(train.WorkdirError, match=r"rate: 0.1 there, 0.2 here\n  ways: absent"):
        fit(workdir=tmp_path, config={"rate": 0.2, "seed": 0, "ways": 5})
    assert json.loads((tmp_path / "config.json").read_text()) == {"rate": 0.1, "seed": 0}


def test_a_run_may_be_lengthened_and_says_so(tmp_path):
    lengths = [{"num_meta_steps": steps, "seed": 0} for steps in (20, 40, 60)]
    for config in lengths:
        fit(workdir=tmp_path, config=config, num_meta_steps=config["num_meta_steps"])
    config = {**lengths[-1], "earlier_num_meta_steps": [20, 40]}
    assert train.read_config(tmp_path) == config
    at_once, continued = (fit(workdir=where, config=lengths[-1]) for where in (None, tmp_path))
    assert_equal(at_once.state, continued.state)
    assert train.read_config(tmp_path) == config
    for other in (lengths[0], {**lengths[-1], "num_meta_steps": 80, "seed": 1}):
        with pytest.raises(train.WorkdirError, match="num_meta_steps: 60 there"):
            fit(workdir=tmp_path, config=other, num_meta_steps=other["num_meta_steps"])


def test_checkpoints_of_an_unknown_configuration_are_refused(tmp_path):
    fit(workdir=tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(train.WorkdirError, match=r"no config\.json that says of what"):
        fit(workdir=tmp_path)


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
from tests.train.runs import initial, learner, loss
assert jax.device_count() == 1
adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
found = train.load_meta_params({workdir!r}, adapt, initial())
jax.tree.map(np.testing.assert_array_equal, found,
             train.load({workdir!r}, learner(), initial()).best.meta_params)
print(*np.asarray(found.params["v"]).ravel().tolist())
"""


def test_a_single_device_reads_what_several_saved(tmp_path):
    spread = metajax.maml(
        loss, optax.sgd(0.01), optax.adam(1e-3), num_steps=2, mesh=metajax.task_mesh(3)
    )
    best = fit(spread, workdir=tmp_path, num_meta_steps=20).best
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


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_state_is_the_one_that_validated_best(tmp_path, mode):
    result = fit(workdir=tmp_path, validation=validation(mode))
    measured = {
        line["step"]: line["validation/mse"]
        for line in train.read_metrics(tmp_path)
        if "validation/mse" in line
    }
    assert list(measured) == [20, 40, 60]
    assert result.best_step == {"min": min, "max": max}[mode](measured, key=measured.get)
    score = validation().measure(result.best, Sinusoid(), jax.random.split(SETTINGS["key"])[1])[
        "mse"
    ]
    assert score == pytest.approx(measured[result.best_step], rel=1e-5)


def test_metrics_are_written_as_lines_and_events(tmp_path):
    fit(workdir=tmp_path, num_meta_steps=25)
    lines = train.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert len(lines[0]["train/support_loss"]) == 2
    assert {"train/query_loss", "train/query/bias", "train/meta_gradient_norm"} <= set(lines[0])
    assert any(path.stat().st_size > 100 for path in (tmp_path / "events").iterdir())


def test_a_half_written_line_is_dropped_on_resume(tmp_path):
    fit(workdir=tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "train/que')
    fit(workdir=tmp_path)
    assert [line["step"] for line in train.read_metrics(tmp_path)][-1] == 60


def test_tasks_are_an_argument_not_a_constant():
    # Were the images compiled in, the executables of two data sets could not be one.
    from metajax.tasks import FewShot

    traces = []

    def counting(params, batch, rng):
        traces.append(1)
        x, y = batch
        return jnp.mean((x.mean((1, 2, 3)) * params - y) ** 2), {}

    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2, 1)
    fomaml = metajax.fomaml(counting, optax.sgd(0.1), optax.sgd(0.1))
    tasks = FewShot(images, ways=2, shots=1, queries=1)
    train.fit(fomaml, jnp.ones(()), tasks, **{**SETTINGS, "num_meta_steps": 30})
    once = len(traces)
    train.fit(fomaml, jnp.ones(()), tasks, **{**SETTINGS, "num_meta_steps": 10})
    assert len(traces) == 2 * once  # the number of calls of one run adds no trace


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_meta_steps": 0}, "num_meta_steps must be a positive integer, got 0"),
        ({"meta_batch_size": 1.5}, "meta_batch_size must be a positive integer"),
        ({"validate_every": 15}, "validate_every=15 must be a multiple of steps_per_call=10"),
        ({"checkpoint_every": 5}, "checkpoint_every=5 must be a multiple"),
    ],
)
def test_wrong_counts_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fit(**changes)


def test_a_missing_validation_metric_is_named():
    wrong = validation()._replace(metric="accuracy")
    with pytest.raises(ValueError, match="'accuracy', but measure returned only 'mse'"):
        fit(validation=wrong)


def test_load_without_a_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        train.load(tmp_path, learner(), initial())
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        train.load_meta_params(tmp_path, adapt, initial())


def test_provenance_names_device_versions_environment_and_commit(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    found = train.provenance.__wrapped__()
    assert found["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert found["device"]["platform"] == "cpu"
    assert found["versions"]["jax"] == jax.__version__
    assert "commit" in found


def test_the_commit_of_a_container_is_what_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("METAJAX_COMMIT", "0123456789")
    monkeypatch.setattr("metajax.train.workdir.__file__", str(tmp_path / "workdir.py"))
    assert train.provenance.__wrapped__()["commit"] == "0123456789"


def test_a_last_update_that_is_not_finite_is_no_result(tmp_path):
    settings = {**SETTINGS, "num_meta_steps": 1, "steps_per_call": 1}
    with pytest.raises(train.NonFiniteError, match="meta-step 1: the update is not finite"):
        train.fit(learner(optax.sgd(jnp.inf)), initial(), Sinusoid(), workdir=tmp_path, **settings)
    with pytest.raises(FileNotFoundError):
        train.load(tmp_path, learner(optax.sgd(jnp.inf)), initial())


def test_the_checkpoint_after_a_diverging_update_is_the_one_before_it(tmp_path):
    # The rate becomes infinite at the last update of the second call, which saves.
    outer = optax.sgd(lambda count: jnp.where(count < 39, 1e-3, jnp.inf))
    with pytest.raises(train.NonFiniteError, match="meta-step 40: the update"):
        train.fit(learner(outer), initial(), Sinusoid(), workdir=tmp_path, **SETTINGS)
    saved = train.load(tmp_path, learner(outer), initial())
    assert int(saved.state.step) == 20
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(saved.state.meta_params))


def measured(values):
    """A validation whose measurement at meta-step 20, 40, ... is the next of `values`."""
    table = jnp.asarray(values)
    return lambda state, tasks, rng: {"mse": table[state.step // 20 - 1]}


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [jnp.nan, 2.0, 1.0], 60),
        ("max", [jnp.nan, 2.0, 1.0], 40),
        ("min", [2.0, jnp.nan, 3.0], 20),
        ("max", [jnp.nan, jnp.nan, jnp.nan], 20),
        ("min", [1.0, 1.0, 1.0], 20),  # the first of equal ones
        ("max", [1.0, 1.0, 1.0], 20),
    ],
)
def test_any_number_is_better_than_none(mode, values, best):
    chosen = train.Validation(Sinusoid(), measured(values), "mse", mode)
    result = train.fit(learner(), initial(), Sinusoid(), validation=chosen, **SETTINGS)
    assert result.best_step == best


def test_a_run_is_validated_at_its_end_whatever_its_length():
    table = measured([3.0, 2.0, 1.0])
    chosen = train.Validation(
        Sinusoid(), lambda state, *args: table(state._replace(step=state.step + 10), *args), "mse"
    )
    settings = {**SETTINGS, "num_meta_steps": 30}
    result = train.fit(
        learner(), initial(), Sinusoid(), validation=chosen._replace(mode="min"), **settings
    )
    assert result.best_step == 30


def test_a_measurement_that_is_no_scalar_is_refused():
    chosen = train.Validation(Sinusoid(), lambda state, tasks, rng: {"mse": jnp.ones(3)}, "mse")
    with pytest.raises(ValueError, match=r"'mse' must be a scalar, .* shape \(3,\)"):
        train.fit(learner(), initial(), Sinusoid(), validation=chosen, **SETTINGS)


def dead_unit(params, x, rng):
    return jnp.mean((jax.nn.relu(x @ params["w"]) @ params["v"]) ** 2), {}


def root_at_zero(params, x, rng):
    return jnp.sqrt(jnp.sum(0.0 * params["w"] ** 2)), {}


@pytest.mark.parametrize(
    ("loss", "optimizer", "num_steps", "remedy", "absent"),
    [
        (dead_unit, optax.adam(0.1), 2, "pass eps_root, as in optax.adam", "Lower"),
        (dead_unit, optax.lamb(0.1), 2, r"choose first_order\(\)", "eps_root"),
        (root_at_zero, optax.sgd(0.1), 0, "derivative of the loss is not finite", "eps_root"),
    ],
    ids=["adam", "lamb", "root"],
)
def test_the_remedy_for_a_derivative_fits(loss, optimizer, num_steps, remedy, absent):
    params = {"w": jnp.asarray([[1.0, -100.0]]), "v": jnp.ones((2, 1))}
    maml = metajax.maml(loss, optimizer, optax.sgd(0.1), num_steps=num_steps)

    def tasks(rng):
        x = jax.random.uniform(rng, (4, 1))
        return metajax.Episode(x, x)

    with pytest.raises(train.NonFiniteError, match=remedy) as error:
        train.fit(maml, params, tasks, **SETTINGS)
    assert absent not in str(error.value)


def test_a_state_of_the_model_is_saved_and_loaded(tmp_path):
    def stateful_loss(model, batch, rng):
        value, metrics = loss(model.params, batch, rng)
        return value, metrics, 0.9 * model.state + 0.1 * batch[1].mean()

    start = metajax.Stateful(initial(), jnp.zeros(()))
    maml = metajax.maml(stateful_loss, optax.sgd(0.01), optax.adam(1e-3), num_steps=2)
    whole = train.fit(maml, start, Sinusoid(), **SETTINGS)
    for length in (30, 60):
        settings = {**SETTINGS, "num_meta_steps": length}
        resumed = train.fit(maml, start, Sinusoid(), workdir=tmp_path, **settings)
    jax.tree.map(np.testing.assert_array_equal, whole.state, resumed.state)
    assert float(whole.state.inner_state.model) != 0
    loaded = train.load_meta_params(tmp_path, maml.inner, start)
    assert float(loaded.params.state) == float(whole.best.inner_state.model)
    adapted, _ = maml.inner.apply(
        loaded, Sinusoid().sample(SETTINGS["key"]).support, SETTINGS["key"]
    )
    assert isinstance(adapted, metajax.Stateful)
