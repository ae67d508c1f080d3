"""The list of runs that want a GPU: what is packed for it, what is worked on, what comes back."""

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import accelerator, packing
from benchmarks.results_folder import record_folder
from experiments import locomotion
from experiments.command import with_changes
from experiments.settings import evaluation_config, training_config

SPLITS = {"train": 5, "val": 2, "test": 3}


@pytest.mark.slow
def test_what_is_packed_in_parts_is_there_when_all_have_arrived(tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    for split, count in SPLITS.items():
        names = [f"{split}{i}.jpg" for i in range(count)]
        (images / f"{split}.csv").write_text("".join(f"{n},c\n" for n in ["filename", *names]))
        with zipfile.ZipFile(images / f"{split}.zip", "w") as archive:
            for name in names:
                archive.writestr(f"images/{name}", name.encode() * 100)
    drawings = packing.cache.default_dir("omniglot") / "nearest-28.npz"
    drawings.parent.mkdir(parents=True, exist_ok=True)
    drawings.write_bytes(b"drawings")
    monkeypatch.setenv("MINI_IMAGENET_DIR", str(images))
    monkeypatch.setattr(packing, "_wheels", lambda folder: folder.mkdir(parents=True))
    monkeypatch.setattr(packing, "PART_BYTES", 3000)
    monkeypatch.setattr(packing, "UNPACKED", tmp_path / "unpacked")

    packing.prepare(tmp_path / "pack")
    drawings.unlink()
    parts = sorted((tmp_path / "pack").iterdir())
    assert len(parts) > 1
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for i, part in enumerate(parts):
        part.rename(arrived / part.name)
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: None)  # no wheel to install
        there = packing.unpack(arrived)["MINI_IMAGENET_DIR"]
        assert len([*Path(there).glob("*.zip")]) == i + 1
    assert drawings.read_bytes() == b"drawings"
    found = {}
    for path in (tmp_path / "unpacked" / "mini-imagenet").glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            found |= {name: archive.read(name) for name in archive.namelist()}
    assert len(found) == sum(SPLITS.values())
    assert found["images/val1.jpg"] == b"val1.jpg" * 100


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "GRACE", 0.5)
    monkeypatch.setattr(accelerator, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(accelerator, "RUNS", tmp_path / "runs")


def outcomes(tmp_path, budget, *entries):
    with (tmp_path / "log.txt").open("w") as log:
        worker = accelerator.Worker(log, budget, {})
        for entry in entries:
            worker.work(entry)
    return [outcome for _, _, outcome in worker.table]


def test_what_is_recorded_is_left_out(tmp_path, quick):
    record = tmp_path / "results" / "meta_gradient_gpu.jsonl"
    record.parent.mkdir()
    record.write_text(json.dumps({"case": "omniglot, 1 query"}) + "\n")
    assert outcomes(tmp_path, 60.0, accelerator.race("omniglot, 1 query")) == ["is recorded"]


def test_a_command_is_stopped_when_the_time_is_up(tmp_path, quick):
    version = accelerator.Entry("version", ("platform",))
    endless = accelerator.Entry("endless", ("http.server", "0"))
    found = outcomes(tmp_path, 3.0, version, endless, version)
    assert found == ["exit status 0", "stopped for lack of time", "no time left"]
    assert "+ python -m platform" in (tmp_path / "log.txt").read_text()


def test_new_records_and_the_last_checkpoint_come_back(tmp_path, quick):
    out, workdir = tmp_path / "out", tmp_path / "runs" / "cell"
    out.mkdir()
    for name in ("config.json", "checkpoints/5/state", "checkpoints/10/state", "events.1"):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(name)
    record = tmp_path / "results" / "a" / "result.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    assert accelerator.gather(out, since=0.0) == []
    with tarfile.open(out / "records.tar.gz") as tar:
        assert tar.getnames() == ["a/result.json"]
    with tarfile.open(out / "run-cell.tar.gz") as tar:
        assert sorted(tar.getnames()) == ["cell/checkpoints/10/state", "cell/config.json"]
    assert accelerator.gather(out, since=record.stat().st_mtime + 1) == []
    with tarfile.open(out / "records.tar.gz") as tar:
        assert tar.getnames() == []


def test_what_the_list_names_exists():
    files = [part for entry in accelerator.LIST for part in entry.command if part.endswith(".py")]
    modules = {entry.command[0] for entry in accelerator.LIST} - {"pytest"}
    assert files
    for path in [*files, *(f"{module.replace('.', '/')}.py" for module in modules)]:
        assert (accelerator.ROOT / path).exists(), path


@pytest.mark.slow
def test_the_rehearsal_passes(omniglot_data_dir):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--rehearse", "--budget=900"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=accelerator.ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("| checks | ", "finished and recorded |", "run-finn2017_omniglot_5w1s.tar.gz"):
        assert line in done.stdout
    assert "exit status 1" not in done.stdout


@pytest.mark.parametrize(("task", "algorithm"), [("cheetah_dir", "maml"), ("ant_dir", "oracle")])
def test_the_record_of_a_robot_is_where_it_is_looked_for(task, algorithm):
    entry = accelerator.robot(task, algorithm)
    flags = dict(flag.removeprefix("--").split("=") for flag in entry.command[1:])
    typed = {"trajectories": int, "standardize": lambda text: text == "True"}
    changes = {name: typed.get(name, str)(value) for name, value in flags.items()}
    settings, _ = with_changes(locomotion.EXPERIMENT, "finn2017", changes)
    result = {
        "experiment": "locomotion",
        "preset": "finn2017",
        "algorithm": algorithm,
        "config": {**training_config(settings), **evaluation_config(settings), "seed": 0},
        "device": {"platform": "gpu"},
    }
    assert str(record_folder(result) / "result.json") == entry.record
