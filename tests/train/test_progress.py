"""The metrics of the progress line."""

import jax.numpy as jnp
import numpy as np
import pytest

from metajax import train
from metajax.train import progress
from metajax.train.workdir import provenance
from tests.train.runs import fit, own


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


def test_seconds_are_kept_by_the_kind_of_device(monkeypatch):
    at = iter([10.0, 12.5, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(at))
    earlier = {"seconds": 5.0, "seconds_on": {"another": 5.0}, "best_step": 3}
    clock = progress.Clock(earlier)
    here = provenance()["device"]["kind"]
    stamped = clock.stamp(earlier)
    assert stamped == {
        "seconds": 7.5,
        "seconds_on": {"another": 5.0, here: 2.5},
        "best_step": 3,
    }
    assert clock.stamp(stamped)["seconds_on"] == {"another": 5.0, here: 10.0}
    assert earlier["seconds"] == 5.0
