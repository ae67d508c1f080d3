"""Metrics as lines and events, averaged over a call, and after a resume."""

import jax.numpy as jnp
import numpy as np
import pytest

from metajax import train
from tests.train.runs import fit, own


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_metric_that_is_not_finite_is_written_without_a_word(value, tmp_path, capsys, caplog):
    mine = own(lambda step: {"odd": jnp.asarray(value)})
    fit(mine, num_meta_steps=20, workdir=tmp_path)
    assert not caplog.records
    np.testing.assert_equal(train.read_metrics(tmp_path)[-1]["train/odd"], value)


def test_a_half_written_line_is_dropped_on_resume(tmp_path):
    fit(own(), workdir=tmp_path, num_meta_steps=20)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train/que')
    fit(own(), workdir=tmp_path, num_meta_steps=30)
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [10, 20, 30]
