"""The files that schedulers start runs by: valid, and their commands are accepted."""

import os
import re
import subprocess

import pytest
import yaml

from experiments import command, devices, omniglot
from experiments import settings as typed
from tests.processes import ROOT

JOBS = ROOT / "experiments" / "jobs"


def accepted(words, num_devices):
    """Asserts that the launcher takes the flags, and that so many devices share the tasks."""
    experiment = omniglot.EXPERIMENT
    given = typed.parse([type(experiment.presets[PRESET]), type(experiment.launch)], words)
    launch = {"preset", "workdir", "distributed"}
    changes = {k: v for k, v in given.items() if k not in launch}
    settings, _ = command.with_changes(experiment, given["preset"], changes)
    typed.check_bounds(settings)
    devices.check_shared(devices.shared_tasks(settings, False), num_devices)
    return given


PRESET = "finn2017/omniglot_5w1s"


def jobset():
    return yaml.safe_load((JOBS / "jobset.yaml").read_text())


def test_the_job_set_starts_a_process_on_each_host():
    found = jobset()
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert spec["parallelism"] == spec["completions"] == rows * columns // chips
    assert spec["completionMode"] == "Indexed"  # by which JAX finds the others
    assert spec["backoffLimit"] == 0  # all start again, not one of them
    module, *words = container["args"]
    assert module == "experiments.omniglot"
    given = accepted(words, rows * columns)
    assert given["distributed"]
    assert given["workdir"].startswith("gs://")


def test_the_job_of_the_job_set_fits_the_schema_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate").validate
    for job in jobset()["spec"]["replicatedJobs"]:
        head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}}
        validate({**head, **job["template"]}, "1.31", strict=True)


def usage(path):
    """The words of the command in a file's head, over its continued lines."""
    text = re.sub(r"\\\n#\s*", "", path.read_text())
    line = re.search(r"^#.*(experiments\.omniglot .*)$", text, flags=re.MULTILINE)[1]
    return line.split()[1:]


def test_the_command_for_cloud_tpu_is_accepted():
    given = accepted(usage(JOBS / "tpu.sh"), 16)
    assert given["workdir"].startswith("gs://")


@pytest.mark.parametrize("name", ["slurm.sh", "tpu.sh", "one_node.sh"])
def test_the_scripts_are_of_bash(name):
    subprocess.run(["bash", "-n", JOBS / name], check=True)


def test_the_script_for_cloud_tpu_calls_gcloud_on_all_hosts(tmp_path):
    (tmp_path / "gcloud").write_text('#!/bin/bash\nprintf "%s\\n" "gcloud $*"\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"REPOSITORY": "https://host/metajax", "COMMIT": "abc", "NAME": "one"}

    def printed(*words):
        call = ["bash", str(JOBS / "tpu.sh"), *words]
        return subprocess.run(
            call, env=environment, capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout

    assert "queued-resources create one --node-id=one" in printed("create")
    install, run = printed("run", "experiments.sinusoid", "--workdir=gs://b/a b").splitlines()
    for line in (install, run):
        assert line.startswith("gcloud compute tpus tpu-vm ssh one")
        assert "--worker=all" in line
    assert "git checkout --quiet 'abc'" in install
    assert run.endswith(r"python -m experiments.sinusoid --workdir=gs://b/a\ b  --distributed")
    assert "queued-resources delete one" in printed("delete")
    with pytest.raises(subprocess.CalledProcessError):
        printed("else")


def test_slurm_requeues_takes_a_line_of_a_file_and_numbers_the_gpus(tmp_path):
    for name, code in (("srun", "143"), ("scontrol", "0")):
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*"\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "runs.txt").write_text("python -m a --x=1\npython -m b --x=2\n")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def printed(*words, **variables):
        call = ["bash", str(JOBS / "slurm.sh"), *words]
        return subprocess.run(
            call, env={**environment, **variables}, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    whole = printed("python", "-m", "a", "--x=1 2")
    assert whole == ["srun --kill-on-bad-exit=0 python -m a --x=1 2", "scontrol requeue 7"]
    line = printed(str(tmp_path / "runs.txt"), SLURM_ARRAY_TASK_ID="2")
    assert line[0] == "srun --kill-on-bad-exit=0 python -m b --x=2"
    # Slurm numbers the GPUs of each process from 0, where they are given to processes.
    (tmp_path / "srun").write_text('#!/bin/bash\necho "devices $JAX_LOCAL_DEVICE_IDS"\n')
    assert printed("python") == ["devices "]
    for given, numbers in (("1", "0"), ("gpu:2", "0,1"), ("gpu:a100:4", "0,1,2,3")):
        assert printed("python", SLURM_GPUS_PER_TASK=given) == [f"devices {numbers}"]
    assert printed("python", SLURM_GPUS_PER_TASK="2", JAX_LOCAL_DEVICE_IDS="1") == ["devices 1"]
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):  # what fails is not repeated
        printed("python", "-m", "a")


def test_the_image_has_what_the_packages_need():
    text = (JOBS / "Dockerfile").read_text()
    for name in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE):
        for each in name.split():
            assert (ROOT / each).exists()
            assert f"!{each}" in (JOBS / "Dockerfile.dockerignore").read_text()
    assert "REGISTRY/metajax" in text
    assert 'ENTRYPOINT ["python", "-m"]' in text  # JobSet's args are its arguments
