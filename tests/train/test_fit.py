"""The training loop: single updates, metrics, the best state, numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import FewShot, Sinusoid, meta_batch
from tests.train.runs import SETTINGS, fit, initial, learner, own, validation


def test_many_steps_in_one_call_are_the_single_updates():
    result = fit(num_meta_steps=10)
    one, state = learner(), learner().init(initial())
    key = jax.random.split(SETTINGS["key"])[0]
    update = jax.jit(one.update)
    for step in range(10):
        task_rng, update_rng = jax.random.split(jax.random.fold_in(key, step))
        state, _ = update(state, meta_batch(Sinusoid(), 3, task_rng), update_rng)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result.state, state
    )


def test_the_caller_keeps_its_parameters():
    params = initial()
    train.fit(learner(), params, Sinusoid(), **SETTINGS)
    assert np.isfinite(params["w"]).all()  # a donated buffer would raise


def test_metrics_are_written_as_lines_and_events(tmp_path):
    fit(workdir=tmp_path, num_meta_steps=25)
    lines = train.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert len(lines[0]["train/support_loss"]) == 2
    assert {"train/query_loss", "train/query/bias", "train/meta_gradient_norm"} <= set(lines[0])
    assert any(path.stat().st_size > 100 for path in (tmp_path / "events").iterdir())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_metrics_are_averaged_over_the_steps_of_a_call(tmp_path, dtype):
    mine = own(lambda step: {"seen": (1.25 + 2 * (step % 2)).astype(dtype)})
    every = dict.fromkeys(("steps_per_call", "checkpoint_every", "validate_every"), 1000)
    fit(mine, workdir=tmp_path, num_meta_steps=1000, **every)
    assert train.read_metrics(tmp_path)[0]["train/seen"] == (2 if dtype == jnp.int32 else 2.25)


def test_tasks_are_an_argument_not_a_constant():
    # Were the images compiled in, the executables of two data sets could not be one.
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
    train.fit(fomaml, jnp.ones(()), tasks, **{**SETTINGS, "num_meta_steps": 25})
    assert len(traces) == 3 * once  # nor does another length of calls


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


def test_a_last_update_that_is_not_finite_is_no_result(tmp_path):
    settings = {**SETTINGS, "num_meta_steps": 1, "steps_per_call": 1}
    with pytest.raises(train.NonFiniteError, match="meta-step 1: the update is not finite"):
        train.fit(learner(optax.sgd(jnp.inf)), initial(), Sinusoid(), workdir=tmp_path, **settings)
    with pytest.raises(FileNotFoundError):
        train.load(tmp_path, learner(optax.sgd(jnp.inf)), initial())


def test_the_checkpoint_after_a_diverging_update_is_the_one_before_it(tmp_path):
    # At the last update of the second call, which would save; what is reported is finite.
    broken = own(lambda step: {"objective": 1.0, "meta_gradient_norm": 1.0}, bad_step=40)
    with pytest.raises(train.NonFiniteError, match=r"^meta-step 40: the update is not finite, "):
        fit(broken, workdir=tmp_path)
    saved = train.load(tmp_path, broken, initial())
    assert int(saved.state.step) == 20
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(saved.state.meta_params))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (lambda step: {}, r"^meta-steps 11 to 20: an update is not finite\. Lower the inner or"),
        (lambda step: {"objective": step}, r"^meta-steps 11 to 20: an update is not finite"),
        (
            lambda step: {"objective": jnp.where(step < 15, 1.0, jnp.nan)},
            r"^meta-step 16: objective nan\. Lower the inner or outer",
        ),
        (
            lambda step: {"meta_gradient_norm": jnp.where(step < 13, 1.0, jnp.inf)},
            r"^meta-step 14: norm of the meta-gradient inf\. Lower the inner or outer",
        ),
        (
            lambda step: {"objective": jnp.array([1.0, 1.0 / (step != 13)])},
            r"^meta-step 14: objective 1\.0 inf\. Lower the inner",
        ),
        (
            lambda step: {"objective": 1.0, "meta_gradient_norm": 1.0 / (step != 12)},
            r"^meta-step 13: objective 1\.0, norm of the meta-gradient inf\. A derivative of the",
        ),
    ],
)
def test_finiteness_is_judged_by_what_there_is(metrics, message):
    with pytest.raises(train.NonFiniteError, match=message):
        fit(own(metrics, bad_step=20))


def test_keys_and_integers_need_not_be_finite():
    beside = (jax.random.key(0), jnp.arange(3))
    assert int(fit(own(inner_state=beside), num_meta_steps=10).state.step) == 10
    with pytest.raises(train.NonFiniteError, match=r"^meta-steps 1 to 10"):
        fit(own(inner_state=(*beside, jnp.array([0.0, jnp.inf]))))


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({}, "tasks/s  0 s left  best step 20\n"),
        ({"seen": 3.0}, "0 s left  best step 20\n"),
        ({"objective": 3.0}, "objective 3  best step 20\n"),
        ({"objective": 3.0, "query_loss": [4.0, 2.0]}, "query loss 2  best step 20\n"),
        ({"return": [1.0, 5.0], "query_loss": 2.0}, "query loss 2  best step 20\n"),
        ({"query_loss": np.zeros(0), "objective": 2.0}, "objective 2  best step 20\n"),
    ],
)
def test_a_learner_of_ones_own_may_report_what_it_likes(metrics, shown, tmp_path, capsys):
    chosen = train.Validation(
        None, lambda state, *_: {"step": state.step, "all": jnp.arange(2)}, "step"
    )
    mine = own(lambda step: {name: jnp.asarray(value) for name, value in metrics.items()})
    changes = {"workdir": tmp_path, "show_progress": True, "validation": chosen}
    result = fit(mine, num_meta_steps=20, **changes)
    np.testing.assert_array_equal(result.state.meta_params.params["b"], np.full(8, 20.0))
    assert capsys.readouterr().err.endswith(shown)
    written = train.read_metrics(tmp_path)[-2]
    assert written.keys() == {"step", "seconds", *(f"train/{name}" for name in metrics)}


def test_the_metric_of_the_progress_line(tmp_path, capsys):
    mine = own(lambda step: {"returns": {"all": jnp.asarray([1.0, 5.0])}, "query_loss": 2.0})
    fit(mine, num_meta_steps=20, show_progress=True, progress_metric="returns/all")
    assert capsys.readouterr().err.endswith("returns/all 5\n")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_metric_that_is_not_finite_is_written_without_a_word(value, tmp_path, capsys, caplog):
    mine = own(lambda step: {"odd": jnp.asarray(value)})
    fit(mine, num_meta_steps=20, workdir=tmp_path)
    assert not caplog.records
    np.testing.assert_equal(train.read_metrics(tmp_path)[-1]["train/odd"], value)


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
        fit(maml, params=params, tasks=tasks)
    assert absent not in str(error.value)
