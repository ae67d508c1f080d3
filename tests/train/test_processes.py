"""Runs over several processes: the numbers of one, one set of files, one step to stop at."""

import signal
import time

import jax
import numpy as np
import pytest

from metajax import train
from tests import processes as started
from tests.train.runs import lines, listed, own, run


def start(workdir, num_processes, devices, **options):
    """Starts the processes of a run, with so many devices each."""
    address = started.free_address()
    workdir.mkdir(exist_ok=True)
    words = [f"{name}={value!r}" for name, value in options.items()]
    return [
        started.start(
            "tests.train.worker", address, num_processes, process, devices, workdir, *words
        )
        for process in range(num_processes)
    ]


def finish(processes, code=0):
    """The last line of each process."""
    outputs = started.outputs(processes)
    assert [p.returncode for p in processes] == [code] * len(processes), outputs
    return [out.splitlines()[-1] for out, _ in outputs]


def params(workdir, process=0):
    with np.load(workdir / f"params-{process}.npz") as found:
        return dict(found)


def assert_equal(one, other, **tolerance):
    for name in one:
        np.testing.assert_allclose(one[name], other[name], **tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process of two devices."""
    workdir = tmp_path_factory.mktemp("alone")
    finish(start(workdir, 1, 2))
    return workdir


def test_two_processes_are_one_process_of_two_devices(tmp_path, alone):
    finish(start(tmp_path, 2, 1))
    for process in range(2):
        assert_equal(params(tmp_path, process), params(alone), rtol=0, atol=0)
    assert lines(tmp_path) == lines(alone)
    assert sorted(listed(tmp_path)) == sorted(listed(alone))
    assert len([*(tmp_path / "events").iterdir()]) == 1


def test_two_processes_write_a_damaged_checkpoint_again(tmp_path, alone):
    finish(start(tmp_path, 2, 1))
    newest = max(listed(tmp_path), key=int)
    damaged = max((tmp_path / "checkpoints" / newest / "best").rglob("d/*"), key=lambda p: p.name)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    finish(start(tmp_path, 2, 1))
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == [newest]
    assert newest in listed(tmp_path)
    for process in range(2):
        assert_equal(params(tmp_path, process), params(alone), rtol=0, atol=0)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_any_number_continues(tmp_path, alone):
    processes = start(tmp_path, 2, 1, num_meta_steps=10**6)
    deadline = time.monotonic() + 60
    while not listed(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    first, second = finish(processes)
    assert first == second
    assert first.startswith("stopped by SIGTERM at ")
    step = int(first.split()[4])
    assert str(step) in listed(tmp_path)
    assert train.read_metrics(tmp_path)[-1]["step"] == step
    length = step + 20
    finish(start(tmp_path, 1, 2, num_meta_steps=length))
    finish(start(tmp_path / "whole", 1, 2, num_meta_steps=length))
    assert_equal(params(tmp_path), params(tmp_path / "whole"), rtol=0, atol=0)
    assert lines(tmp_path) == lines(tmp_path / "whole")


@pytest.mark.slow
def test_streamed_tasks_are_read_where_they_are_adapted_to(tmp_path):
    settings = {"what": "images", "num_meta_steps": 20}
    one = finish(start(tmp_path / "one", 1, 2, **settings))
    two = finish(start(tmp_path / "two", 2, 1, **settings))
    assert_equal(params(tmp_path / "two"), params(tmp_path / "one"), rtol=0, atol=0)
    read = [int(text.split()[-1]) for text in (*one, *two)]
    assert read == [read[0], read[0] // 2, read[0] // 2]


def test_two_processes_without_a_mesh_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="fit: 2 processes need a mesh over their devices"):
        run(tmp_path, own())


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_four_devices_are_four_devices(tmp_path, processes, devices):
    finish(start(tmp_path / "one", 1, 4))
    finish(start(tmp_path / "many", processes, devices))
    assert_equal(params(tmp_path / "many"), params(tmp_path / "one"), rtol=1e-5, atol=1e-7)
