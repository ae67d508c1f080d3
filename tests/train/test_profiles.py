"""Traces of some meta-steps."""

import gzip
import json

import jax
import pytest

from tests.train.runs import own, run


def test_a_trace_of_the_calls_between_two_meta_steps(tmp_path, monkeypatch):
    events = []
    start, stop = jax.profiler.start_trace, jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "start_trace", lambda x: (events.append("start"), start(x)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (events.append("stop"), stop()))
    learner = own(lambda step: {"query_loss": step * 1.0})
    run(tmp_path, learner, num_meta_steps=40, profile=(10, 20))
    assert events == ["start", "stop"]
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    assert any(name and "run" in name for name in names)


def test_a_run_that_ends_before_writes_what_it_has(tmp_path):
    run(tmp_path, own(), num_meta_steps=20, profile=(10, 1000))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    run(tmp_path / "b", own(), num_meta_steps=20, profile=(100, 1000))
    assert not (tmp_path / "b" / "profile").exists()


@pytest.mark.parametrize("profile", [(3, 3), (-1, 2), (1,), "1:2", (1.0, 2.0), 7, (1, 2, 3)])
def test_other_values_are_refused(tmp_path, profile):
    with pytest.raises(ValueError, match=r"fit: profile=.* must be two meta-steps"):
        run(tmp_path, own(), profile=profile)


def test_a_trace_needs_a_workdir():
    with pytest.raises(ValueError, match="fit: profile needs workdir"):
        run(None, own(), profile=(1, 2))
