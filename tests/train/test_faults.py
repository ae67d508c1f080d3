"""Damaged files, a second process, a full disk, other numerics: a run goes on or says why."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from orbax.checkpoint._src.path import async_path as ocp_async_path
from tensorboardX.record_writer import RecordWriter

from metajax import train
from metajax.train import checkpoints
from metajax.train.workdir import read_config
from tests.train.runs import assert_same_run, fit, lines, listed, own, run

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of 40 meta-steps, whose checkpoints are those of steps 20 and 40."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, run(workdir, own(), num_meta_steps=40)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(folder):
    files = [path for path in (folder / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


DAMAGE = {
    "an array is cut off": lambda folder: truncate(largest(folder)),
    "a bit of an array flips": lambda folder: flip(largest(folder)),
    "an array is gone": lambda folder: largest(folder).unlink(),
    "a bit of the record flips": lambda folder: flip(folder / "record" / "metadata"),
    "a part is gone": lambda folder: shutil.rmtree(folder / "best"),
    "the digests are cut off": lambda folder: truncate(folder / checkpoints.DIGESTS),
    "the digests are empty": lambda folder: (folder / checkpoints.DIGESTS).write_text("null"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("steps", [["40"], ["20", "40"]], ids=["newest", "all"])
def test_damaged_checkpoints_are_set_aside_and_named(tmp_path, caplog, undisturbed, damage, steps):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    for step in steps:
        damage(workdir / "checkpoints" / step)
    again = run(workdir, own(), num_meta_steps=40)
    assert_same_run(again, undisturbed[1])
    assert lines(workdir) == lines(undisturbed[0])
    assert sorted(listed(workdir)) == ["20", "40"]
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == steps
    for step in steps:
        assert f"{workdir}/checkpoints/{step} is damaged" in caplog.text
        assert f"it is now {workdir}/damaged/{step}." in caplog.text


def test_a_reader_leaves_damaged_checkpoints_where_they_are(tmp_path, caplog, undisturbed):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    flip(largest(workdir / "checkpoints" / "40"))
    params = undisturbed[1].state.meta_params.params
    assert int(train.load(workdir, own(), params).state.step) == 20
    assert sorted(listed(workdir)) == ["20", "40"]
    assert "is damaged" in caplog.text


def test_checkpoints_without_digests_are_read_and_left_out_if_unreadable(tmp_path, undisturbed):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    for step in ("20", "40"):
        (workdir / "checkpoints" / step / checkpoints.DIGESTS).unlink()
    params = undisturbed[1].state.meta_params.params
    assert int(train.load(workdir, own(), params).state.step) == 40
    truncate(largest(workdir / "checkpoints" / "40"))
    assert_same_run(run(workdir, own(), num_meta_steps=40), undisturbed[1])


HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from metajax.train.workdir import locked
with locked(Path({workdir!r})):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_runs_in_a_workdir(tmp_path):
    script = HOLDER.format(root=ROOT, workdir=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"locked\n"
            with pytest.raises(train.WorkdirError, match="is in use by another process: wait"):
                run(tmp_path, own())
            assert listed(tmp_path) == []
        finally:
            holder.kill()
    run(tmp_path, own())  # a killed process holds nothing


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tensorstore_full(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: Error writing x: No space left [os_error_code='28']")


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (RecordWriter, "write", full),
        (checkpoints.ocp.CheckpointManager, "save", full),
        (checkpoints.ocp.CheckpointManager, "save", tensorstore_full),
        (checkpoints, "write_json", full),
        (checkpoints.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 2**20)),
        (os, "replace", full),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    tmp_path, monkeypatch, undisturbed, owner, name, fault
):
    run(tmp_path, own())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fault)
        with pytest.raises(train.WorkdirError, match=r"No space left on device\. Mend that and"):
            run(tmp_path, own(), num_meta_steps=40)
    assert "20" in listed(tmp_path)
    assert_same_run(run(tmp_path, own(), num_meta_steps=40), undisturbed[1])
    assert lines(tmp_path) == lines(undisturbed[0])


def test_what_ends_a_thread_of_orbax_is_said_once(tmp_path, monkeypatch, caplog):
    def full_in_a_thread(path, text):
        if path.name == "_METADATA":
            full()
        return write(path, text)

    write = ocp_async_path.write_text
    run(tmp_path, own())
    with monkeypatch.context() as patch:
        patch.setattr(ocp_async_path, "write_text", full_in_a_thread)
        with pytest.raises(train.WorkdirError, match="No space left on device"):
            run(tmp_path, own(), num_meta_steps=40)
    assert "Traceback" not in caplog.text
    assert "_SignalingThread" not in caplog.text


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="a folder that nobody can write")
def test_a_workdir_that_cannot_be_made_is_one_line():
    with pytest.raises(train.WorkdirError, match="/proc/run cannot be made a directory"):
        run(Path("/proc/run"), own())


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(train.WorkdirError, match="Permission denied"):
        run(tmp_path / "a", own())


def test_other_numerics_are_another_run(tmp_path):
    run(tmp_path, own(), config={"rate": 0.1})
    assert read_config(tmp_path) == {"rate": 0.1}
    for name, value in (("jax_enable_x64", True), ("jax_default_prng_impl", "rbg")):
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            with pytest.raises(train.WorkdirError, match=f"{name.upper()}: absent there, "):
                run(tmp_path, own(), config={"rate": 0.1}, num_meta_steps=40)
        finally:
            jax.config.update(name, before)
    run(tmp_path, own(), config={"rate": 0.1}, num_meta_steps=40)


def test_other_numerics_are_recorded(tmp_path, float64):
    train.claim(tmp_path, {"rate": 0.1})
    config = read_config(tmp_path)
    assert config == {"rate": 0.1, "JAX_ENABLE_X64": True}
    train.claim(tmp_path, config)


CONFIGS = {
    "[]": "is not a JSON object",
    "null": "is not a JSON object",
    "3": "is not a JSON object",
    "": "is not valid JSON",
    '{"rate": 0.1, "num_meta_steps": "many"}': "another configuration",
    '{"rate": 0.1, "num_meta_steps": null}': "another configuration",
    '{"rate": 0.1, "num_meta_steps": 10, "earlier_num_meta_steps": 3}': "has no list in",
    '{"digests": []}': "begun without config=",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_any_other_json_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(train.WorkdirError, match=CONFIGS[text]):
        train.claim(tmp_path, {"rate": 0.1, "num_meta_steps": 20})


@pytest.mark.parametrize("digests", [[], None, 3, "x"])
def test_digests_of_another_kind_are_one_line(tmp_path, digests):
    (tmp_path / "config.json").write_text(json.dumps({"digests": digests}))
    with pytest.raises(train.WorkdirError, match="has no digests"):
        run(tmp_path, own())


def test_damaged_metrics_lose_no_line(tmp_path):
    first = run(tmp_path, own())
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n"\xff\n{"step": "x"}\n{"st')
    fit(own(), workdir=tmp_path, num_meta_steps=40)
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [10, 20, 30, 40]
    assert first.stopped_by is None
    assert jnp.isfinite(first.wall_seconds)
