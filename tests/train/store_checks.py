"""What `test_places` checks in a process of its own, beside the emulator of a store."""

import contextlib
import hashlib

import jax
import pytest

from experiments import command, sinusoid
from metajax import train
from metajax.train import places
from tests.experiments.launching import SMALL
from tests.train.runs import assert_equal, at_step, fit, own, run

WORKDIR = "gs://bucket/run"


class Killed(BaseException):
    """What no run is prepared for."""


def kill():
    raise Killed


def a_run():
    whole = fit(own())
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        at_step(patch, 50, kill)
        run(WORKDIR, own(), num_meta_steps=60)
    folder = train.place(WORKDIR)
    assert (folder / "checkpoints" / "40").is_dir()
    continued = run(WORKDIR, own(), num_meta_steps=60)
    assert_equal(continued.state, whole.state)
    assert [line["step"] for line in train.read_metrics(WORKDIR)] == [10, 20, 30, 40, 50, 60]
    assert {path.name for path in folder.iterdir()} >= {"checkpoints", "config.json", "events"}
    # A damaged checkpoint is moved, and the one before it read.
    (data, *_) = [
        path
        for path in places.files(folder / "checkpoints" / "60" / "state")
        if path.parent.name == "d"
    ]
    data.write_bytes(data.read_bytes()[:-1])
    assert_equal(run(WORKDIR, own(), num_meta_steps=60).state, whole.state)
    assert [path.name for path in (folder / "damaged").iterdir()] == ["60"]
    with pytest.raises(train.WorkdirError, match="holds another run"):
        run(WORKDIR, own(), num_meta_steps=60, key=jax.random.key(9))


def a_launcher():
    words = [*SMALL, "--seed=1", f"--workdir={WORKDIR}"]
    assert command.main(sinusoid.EXPERIMENT, words) == 0
    folder = train.place(WORKDIR)
    assert train.read_json(folder / "result.json")["meta_steps"] == 4
    weights = folder / "weights.safetensors"
    assert (
        hashlib.sha256(weights.read_bytes()).hexdigest()
        == train.read_json(folder / "result.json")["weights"]["sha256"]
    )
    names = {path.name for path in folder.iterdir()}
    assert names >= {"weights.safetensors", "adaptation.png", "metrics.jsonl"}
    assert command.main(sinusoid.EXPERIMENT, ["--mode=eval", f"--workdir={WORKDIR}"]) == 0
    assert (folder / "evaluations").is_dir()
