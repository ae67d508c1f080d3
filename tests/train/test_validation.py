"""The best state of a run: how it is measured, compared and kept."""

import jax
import jax.numpy as jnp
import pytest

from metajax import train
from metajax.tasks import Sinusoid
from tests.train.runs import SETTINGS, fit, own, validation


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
    assert fit(own(), validation=chosen).best_step == best


def test_a_run_is_validated_at_its_end_whatever_its_length():
    table = measured([3.0, 2.0, 1.0])
    chosen = train.Validation(
        Sinusoid(), lambda state, *args: table(state._replace(step=state.step + 10), *args), "mse"
    )
    result = fit(own(), validation=chosen._replace(mode="min"), num_meta_steps=30)
    assert result.best_step == 30


def test_validation_tasks_may_be_arrays_or_nothing():
    for tasks, measure in (
        (
            Sinusoid().sample(jax.random.key(0)),
            lambda state, episode, rng: {"mse": jnp.mean(episode.query[1])},
        ),
        (jnp.ones(3), lambda state, ones, rng: {"mse": jnp.sum(ones)}),
        (None, lambda state, nothing, rng: {"mse": jnp.ones(())}),
    ):
        result = fit(own(), validation=train.Validation(tasks, measure, "mse"), num_meta_steps=10)
        assert result.best_metrics["mse"] == pytest.approx(
            float(measure(None, tasks, None)["mse"]), rel=1e-6
        )
