"""What `test_places` checks in a process of its own, beside the emulator of a store."""

import json

import numpy as np

from experiments import command, sinusoid
from metajax import train
from metajax.train import places
from tests.experiments.launching import SMALL
from tests.train.runs import at_step, fit, own, run

WORKDIR = "gs://bucket/run"


class Patch:
    """As pytest's `monkeypatch`, without an end."""

    def setattr(self, owner, name, value):
        setattr(owner, name, value)


class Killed(BaseException):
    pass


def kill():
    raise Killed


def same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def a_run():
    import jax

    whole = fit(own(), num_meta_steps=60)
    undo = train.fit
    from metajax.train.writers import MetricWriter

    write = MetricWriter.write
    at_step(Patch(), 30, kill)
    try:
        run(WORKDIR, own(), num_meta_steps=60)
    except Killed:
        pass
    MetricWriter.write = write
    folder = train.place(WORKDIR)
    assert [line["step"] for line in train.read_metrics(WORKDIR)][:2] == [10, 20]
    continued = run(WORKDIR, own(), num_meta_steps=60)
    same(jax.tree.leaves(whole.state), jax.tree.leaves(continued.state))
    assert [line["step"] for line in train.read_metrics(WORKDIR)] == [10, 20, 30, 40, 50, 60]
    assert {path.name for path in folder.iterdir()} >= {"checkpoints", "config.json", "events"}
    # A damaged checkpoint is moved, and the one before it read.
    (data, *_) = [
        p for p in places.files(folder / "checkpoints" / "60" / "state") if "/d/" in str(p)
    ]
    data.write_bytes(data.read_bytes()[:-1])
    again = run(WORKDIR, own(), num_meta_steps=60)
    same(jax.tree.leaves(whole.state), jax.tree.leaves(again.state))
    assert [path.name for path in (folder / "damaged").iterdir()] == ["60"]
    try:
        run(WORKDIR, own(), num_meta_steps=60, key=jax.random.key(9))
    except train.WorkdirError as error:
        assert "holds another run" in str(error)
    else:
        raise AssertionError
    assert undo is train.fit


def a_launcher():
    words = [*SMALL, "--seed=1", f"--workdir={WORKDIR}"]
    assert command.main(sinusoid.EXPERIMENT, words) == 0
    folder = train.place(WORKDIR)
    result = json.loads((folder / "result.json").read_text())
    assert result["meta_steps"] == 4
    names = {path.name for path in folder.iterdir()}
    assert names >= {"weights.safetensors", "adaptation.png", "metrics.jsonl"}
    assert command.main(sinusoid.EXPERIMENT, ["--mode=eval", f"--workdir={WORKDIR}"]) == 0
    assert (folder / "evaluations").is_dir()
