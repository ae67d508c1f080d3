"""The job script for Slurm, on a cluster of one node: preempted twice, it has the same bits."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from tests.experiments.test_many_processes import SMALL
from tests.processes import ROOT, outputs, start

JOBS = ROOT / "experiments" / "jobs"
COMMAND = ["experiments.sinusoid", *SMALL, "--num_meta_steps=400", "--steps_per_call=2"]
COMMAND += ["--validate_every=100", "--checkpoint_every=10"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("slurmctld") and shutil.which("munged") and os.geteuid() == 0),
        reason="needs slurm-wlm, munge and root",
    ),
]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Runs a command of Slurm, on a cluster that lasts as long as the tests of this file."""
    folder = tmp_path_factory.mktemp("slurm")
    ports = {"SLURMCTLD_PORT": free_port(), "SLURMD_PORT": free_port()}
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {**ports, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(*words):
        return subprocess.run(
            words, env=environment, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout

    def act(action):
        with (folder / "printed").open("a") as file:  # a pipe would stay open with the daemons
            words = ["bash", JOBS / "one_node.sh", action, folder]
            subprocess.run(words, env=environment, stdout=file, stderr=file, check=True)

    act("start")
    try:
        yield call
    finally:
        act("stop")


def wait_for(happened, seconds=300):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def newest(workdir):
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def test_a_job_of_two_tasks_preempted_twice_has_the_same_bits(tmp_path, slurm):
    whole, workdir, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    undisturbed = start(*COMMAND, "--num_devices=2", f"--workdir={whole}")
    assert not outputs([undisturbed], timeout=600)[0][1].count("Traceback")
    job = slurm(
        "sbatch",
        "--parsable",
        "--ntasks=2",
        f"--output={log}",
        str(JOBS / "slurm.sh"),
        *(sys.executable, "-m", *COMMAND, f"--workdir={workdir}"),
    ).strip()

    def state():
        return slurm("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()

    def preempt(times):
        before = newest(workdir)
        wait_for(lambda: newest(workdir) > before or state() == "FAILED")
        assert state() != "FAILED", log.read_text()
        slurm("scancel", "--signal=TERM", job)
        wait_for(lambda: f"Restarts={times} " in slurm("scontrol", "show", "job", job))

    preempt(1)
    preempt(2)
    wait_for(lambda: state() in ("COMPLETED", "FAILED"), 600)
    text = log.read_text()
    assert state() == "COMPLETED", text
    assert text.count("stopped by SIGTERM after ") == 2
    assert "Traceback" not in text
    one, two = (each / "weights.safetensors" for each in (whole, workdir))
    assert one.read_bytes() == two.read_bytes()
