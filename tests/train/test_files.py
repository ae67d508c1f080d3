"""The files of a run: what may be continued, and how."""

import jax.numpy as jnp
import pytest

from metajax import train
from metajax.tasks import Sinusoid
from tests.train.runs import assert_equal, fit, own, run, validation


@pytest.mark.parametrize("config", [None, {}, {"num_meta_steps": 60}])
def test_a_run_cannot_be_shortened(tmp_path, config):
    run(tmp_path, own(), num_meta_steps=40, config=config)
    with pytest.raises(train.WorkdirError, match=r"a run of 40 meta-steps, more than .*=20:"):
        run(tmp_path, own(), config=config)


def test_a_run_without_a_checkpoint_holds_nothing_up(tmp_path):
    with pytest.raises(train.NonFiniteError):
        run(tmp_path, own(bad_step=5))
    assert int(run(tmp_path, own()).state.step) == 20
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [10, 20]


def test_another_metric_does_not_continue_a_choice(tmp_path):
    fit(workdir=tmp_path, config={}, validation=validation())
    other = train.Validation(Sinusoid(), lambda *_: {"accuracy": jnp.ones(())}, "accuracy")
    with pytest.raises(train.WorkdirError, match="another metric than 'accuracy', one of 'mse'"):
        fit(workdir=tmp_path, config={}, validation=other)


def test_without_a_validation_the_metrics_of_one_are_dropped(tmp_path):
    fit(workdir=tmp_path, config={}, validation=validation(), num_meta_steps=20)
    result = fit(workdir=tmp_path, config={}, num_meta_steps=40)
    assert (result.best_step, result.best_metrics) == (40, {})


def test_a_finished_run_is_returned_as_it_is(whole):
    workdir, first = whole
    second = fit(workdir=workdir, validation=validation())
    assert_equal(first.state, second.state)
    assert first.wall_seconds == second.wall_seconds
