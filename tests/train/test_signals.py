"""SIGTERM and Ctrl-C: the run is saved and returned."""

import signal

import pytest

from metajax.train.signals import StopRequest
from tests.train.runs import assert_same_run, at_step, fit, listed, own, validation


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns(tmp_path, monkeypatch, number, whole):
    with monkeypatch.context() as patch:
        at_step(patch, 30, lambda: signal.raise_signal(number))
        stopped = fit(workdir=tmp_path, validation=validation())
    assert (stopped.stopped_by, int(stopped.state.step)) == (number.name, 30)
    assert sorted(listed(tmp_path)) == ["20", "30"]
    resumed = fit(workdir=tmp_path, validation=validation())
    assert resumed.stopped_by is None
    assert_same_run(resumed, whole[1])


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    at_step(monkeypatch, 30, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    # A process that was started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(own(), workdir=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert listed(tmp_path) == ["20"]


def test_a_signal_at_any_moment_is_saved_before_it_is_obeyed(tmp_path, monkeypatch):
    # It arrives just after the loop has looked.
    looks = iter([None, "SIGTERM"])
    monkeypatch.setattr(StopRequest, "received", property(lambda self: next(looks)), raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: vars(self).update(_previous={}))
    stopped = fit(own(), workdir=tmp_path)
    assert (stopped.stopped_by, int(stopped.state.step)) == ("SIGTERM", 20)
    assert listed(tmp_path) == ["20"]


def test_a_signal_at_the_last_step_is_told_of_a_complete_run(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        at_step(patch, 20, lambda: signal.raise_signal(signal.SIGTERM))
        stopped = fit(own(), workdir=tmp_path, num_meta_steps=20)
    assert (stopped.stopped_by, int(stopped.state.step)) == ("SIGTERM", 20)
    again = fit(own(), workdir=tmp_path, num_meta_steps=20)
    assert again.stopped_by is None
    assert_same_run(stopped, again)
