"""A launcher in several processes: the flags that start it, and its result."""

import signal
import time

import jax
import pytest

from experiments import sinusoid
from experiments.settings import UsageError
from tests.experiments.launching import launch
from tests.processes import free_address, outputs, start

SMALL = ["--num_meta_steps=4", "--meta_batch_size=2", "--steps_per_call=2", "--validate_every=4"]
SMALL += ["--checkpoint_every=2", "--eval_tasks=2", "--num_eval_steps=1"]


def started(workdir, num_processes, *words):
    own = ["--num_devices=2"]
    if num_processes > 1:
        address = free_address()
        own = [f"--coordinator_address={address}", f"--num_processes={num_processes}"]
    return [
        start(
            *("experiments.sinusoid", *SMALL, *own, *words, f"--workdir={workdir}"),
            *([f"--process_id={process}"] if num_processes > 1 else []),
        )
        for process in range(num_processes)
    ]


@pytest.mark.slow
def test_two_processes_have_the_result_of_two_devices(tmp_path):
    for name, count in (("one", 1), ("two", 2)):
        processes = started(tmp_path / name, count)
        printed = outputs(processes, timeout=300)
        assert [process.returncode for process in processes] == [0] * count, printed
    assert "mean squared error" in printed[0][0]
    assert "mean squared error" not in printed[1][0]
    one, two = (tmp_path / name / "weights.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_within_a_minute(tmp_path):
    processes = started(tmp_path, 2, "--num_meta_steps=1000000")
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "2").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (_, errors), _ = outputs(processes, timeout=300)
    assert time.monotonic() - killed < 60
    assert processes[0].returncode
    assert "cannot go on without another one, which is gone" in errors
    assert "(stopped sending heartbeats):\n1\n" in errors  # by the coordinator
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2"),
            "--process_id=2 must be less than --num_processes=2",
        ),
        (("--num_processes=0",), "is not an integer in the range"),
        (("--process_id=-1",), "is not an integer in the range"),
    ],
)
def test_flags_that_do_not_fit(tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        launch(sinusoid, *words, f"--workdir={tmp_path}")


@pytest.mark.parametrize("words", [(), ("--mode=eval",)])
def test_many_processes_need_a_workdir_and_train(monkeypatch, words):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match="many processes need --workdir"):
        launch(sinusoid, *words)
