"""Wrong flags, files and environments: each is one line that names the cause.

A table, which the slow tests run; `python -m pytest -m slow tests/test_bad_inputs.py`.
"""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from experiments import command, locomotion, navigation, omniglot, sinusoid, sweep
from experiments.settings import UsageError, setting_rules
from metajax import train
from metajax.data import from_folder
from tests.data.small_mini_imagenet import load
from tests.data.test_mini_imagenet import Source
from tests.data.test_mini_imagenet_pickles import Code, write_pickles
from tests.experiments.launching import SMALL, launch
from tests.processes import ROOT

Image = pytest.importorskip("PIL.Image")
LAUNCHERS = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (sinusoid, omniglot, navigation, locomotion)
}
WRONG_NUMBERS = ("nan", "inf", "-inf", "-1", "1e400", "9" * 20, "one", "", "1,5")


def flags():
    """Wrong values of every number among the flags, and of every choice."""
    for name, experiment in LAUNCHERS.items():
        preset = next(iter(experiment.presets.values()))
        for flag, rule in setting_rules(preset).items():
            value = getattr(preset, flag)
            if isinstance(value, bool):
                yield name, [f"--{flag}=perhaps"], flag
            elif isinstance(value, int | float):
                for wrong in WRONG_NUMBERS:
                    if wrong == "-1" and (rule.least is None or rule.least < 0):
                        continue
                    if wrong == "9" * 20 and isinstance(value, float):
                        continue
                    yield name, [f"--{flag}={wrong}"], flag
            elif rule.choices:
                yield name, [f"--{flag}=nothing"], flag
                yield name, [f"--{flag}="], flag


COMMANDS = [
    ("sinusoid", ["train"], "'train'"),
    ("sinusoid", ["--", "x"], "'x'"),
    ("sinusoid", ["--seed"], "seed"),
    ("sinusoid", ["--=3"], "flag"),
    ("sinusoid", ["--mode=test"], "mode"),
    ("sinusoid", ["--mode=eval", "--workdir=nowhere"], "nowhere"),
    ("sinusoid", ["--preset="], "preset"),
    ("sinusoid", ["--workdir="], "--workdir= is empty"),
    ("sinusoid", ["--coordinator_address="], "--coordinator_address= is empty"),
    ("sinusoid", ["--preset=finn2017/omniglot_5w1s"], "finn2017/omniglot_5w1s"),
    ("sinusoid", ["--workdir=s3://bucket/run"], "s3://bucket/run"),
    ("sinusoid", ["--workdir=hdfs://host/run"], "hdfs://host/run"),
    ("sinusoid", ["--workdir=/proc/run", *SMALL], "/proc/run"),
    ("sinusoid", ["--workdir=README.md"], "README.md"),
    ("sinusoid", ["--workdir=README.md/run", *SMALL], "README.md/run"),
    ("sinusoid", ["--profile=1"], "--profile=1"),
    ("sinusoid", ["--profile=5:1"], "--profile=5:1"),
    ("sinusoid", ["--profile=a:b"], "--profile=a:b"),
    ("sinusoid", ["--profile=-1:2"], "--profile=-1:2"),
    ("sinusoid", ["--num_devices=-1"], "num_devices"),
    ("sinusoid", ["--num_devices=5000"], "num_devices"),
    ("sinusoid", ["--num_devices=2", "--meta_batch_size=3"], "--meta_batch_size=3"),
    ("sinusoid", ["--coordinator_address=localhost:1", "--process_id=1"], "--process_id=1"),
    ("sinusoid", ["--process_id=-1"], "process_id"),
    ("sinusoid", ["--num_processes=0"], "num_processes"),
    ("sinusoid", ["--validate_every=7"], "--validate_every=7"),
    ("sinusoid", ["--checkpoint_every=7"], "--checkpoint_every=7"),
    ("sinusoid", ["--flagfile=/nowhere"], "/nowhere"),
    ("omniglot", ["--ways=1000", "--data_dir=/nowhere"], "/nowhere"),
    ("omniglot", ["--data_dir="], "data_dir"),
    ("omniglot", ["--data_dir=README.md"], "README.md"),
    ("omniglot", ["--inner_batch=99"], "--inner_batch=99"),
    ("omniglot", ["--tail=shared"], "--tail"),
    ("omniglot", ["--cg_steps=3"], "--cg_steps"),
    ("navigation", ["--algorithm=anil"], "algorithm"),
    ("navigation", ["--context_size=2"], "context_size"),
    ("navigation", ["--max_kl=0.1", "--algorithm=promp"], "--max_kl"),
    ("locomotion", ["--task=walk"], "task"),
    ("locomotion", ["--backend=none"], "backend"),
]
SWEEPS = [
    (["nothing"], "nothing"),
    (["sinusoid:finn2017", "--seeds=5:1"], "--seeds=5:1"),
    (["sinusoid:finn2017", "--vary=shots=0"], "shots"),
    (["sinusoid:finn2017", "--vary=shots=nan"], "shots"),
    (["sinusoid:finn2017", "--vary==1"], "="),
]

# Whatever is accepted by mistake ends soon.
SHORT = [word for word in SMALL if "validation_steps" not in word]

# Files of a working directory, and what they hold instead.
CONTENTS = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"3",
    "a string": b'"x"',
    "cut off": b'{"experiment": "sinu',
    "no UTF-8": b"\xff\xfe\x00",
    "another experiment": b'{"experiment": "omniglot"}',
    "no settings": b'{"experiment": "sinusoid"}',
    "a number for a name": b'{"experiment": "sinusoid", "preset": 3}',
    "an unknown preset": b'{"experiment": "sinusoid", "preset": "x", "algorithm": "maml", '
    b'"overrides": []}',
    "a wrong type": b'{"experiment": "sinusoid", "preset": "finn2017", "algorithm": "maml", '
    b'"overrides": [], "shots": "ten"}',
}


def change_table(change):
    def write(root):
        source = Source()
        source.rows["train"] = change(source.rows["train"])
        source.write(root)

    return write


def change_file(name, change):
    def write(root):
        Source().write(root, "zips" if name.endswith(".zip") else "folder")
        path = root / name
        path.write_bytes(change(path.read_bytes()))

    return write


def change_pickle(change):
    return lambda root: write_pickles(root, change)


def a_link_out_of_the_folder(root):
    Source().write(root, "zips")
    with zipfile.ZipFile(root / "images-0.zip", "a") as archive:
        archive.writestr("../../outside.jpg", b"x")
    (root / "images-1.zip").unlink()


DATA = {
    "no folder": lambda root: None,
    "an empty folder": lambda root: root.mkdir(),
    "a missing row": change_table(lambda rows: rows[:-1]),
    "no rows": change_table(lambda rows: []),
    "an unknown class": change_table(lambda rows: [(f, s.replace("n02", "n9")) for f, s in rows]),
    "an image twice": change_table(lambda rows: [rows[0], rows[0], *rows[2:]]),
    "an image that is not there": change_table(lambda rows: [("x.jpg", rows[0][1]), *rows[1:]]),
    "a path out of the folder": change_table(lambda rows: [("../../x.jpg", rows[0][1]), *rows[1:]]),
    "other columns": change_file("train.csv", lambda data: data.replace(b"filename", b"file")),
    "a table cut off": change_file("train.csv", lambda data: data[: len(data) // 2]),
    "a table of zeros": change_file("val.csv", lambda data: bytes(len(data))),
    "an empty table": change_file("test.csv", lambda data: b""),
    "a table in UTF-16": change_file("test.csv", lambda data: data.decode().encode("utf-16")),
    "an image cut off": change_file("images/n010.jpg", lambda data: data[:40]),
    "an empty image": change_file("images/n010.jpg", lambda data: b""),
    "text for an image": change_file("images/n010.jpg", lambda data: b"no image"),
    "a zip cut off": change_file("images-0.zip", lambda data: data[: len(data) // 2]),
    "a zip of zeros": change_file("images-0.zip", lambda data: bytes(len(data))),
    "an empty zip": change_file("images-1.zip", lambda data: b""),
    "an entry out of the folder": a_link_out_of_the_folder,
    "a pickle with a payload": change_pickle(lambda contents: {**contents, "more": Code()}),
    "a payload for the images": change_pickle(lambda c: {**c, "image_data": Code()}),
    "a pickled list": change_pickle(lambda contents: [1, 2]),
    "no images in a pickle": change_pickle(lambda c: {"class_dict": c["class_dict"]}),
    "no classes in a pickle": change_pickle(lambda c: {"image_data": c["image_data"]}),
    "floats in a pickle": change_pickle(lambda c: {**c, "image_data": c["image_data"] / 2}),
    "other sizes in a pickle": change_pickle(lambda c: {**c, "image_data": c["image_data"][:, 1:]}),
    "indices beyond the images": change_pickle(lambda c: {**c, "image_data": c["image_data"][:3]}),
    "words for indices": change_pickle(lambda c: {**c, "class_dict": {"n01": ["a"]}}),
}
ODD_IMAGES = {
    "1": lambda: Image.new("1", (8, 8), 1),
    "L": lambda: Image.new("L", (8, 8), 128),
    "LA": lambda: Image.new("LA", (8, 8), (128, 128)),
    "P": lambda: Image.new("P", (8, 8), 3),
    "RGBA": lambda: Image.new("RGBA", (8, 8), (1, 2, 3, 4)),
    "CMYK": lambda: Image.new("CMYK", (8, 8), (1, 2, 3, 4)),
    "YCbCr": lambda: Image.new("YCbCr", (8, 8), (1, 2, 3)),
    "I;16": lambda: Image.fromarray(np.full((8, 8), 999, np.uint16)),
    "I": lambda: Image.fromarray(np.full((8, 8), 999, np.int32)),
    "F": lambda: Image.fromarray(np.full((8, 8), 0.5, np.float32)),
}
SUFFIX = {"CMYK": "tiff", "YCbCr": "jpg", "F": "tiff", "I": "tiff"}
ENVIRONMENTS = {
    "HOME unset": {"HOME": None},
    "HOME nowhere": {"HOME": "/dev/null/home"},
    "a cache that cannot be written": {"XDG_CACHE_HOME": "/proc/cache"},
    "LANG=C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "40 columns": {"COLUMNS": "40"},
    "no terminal": {"TERM": "dumb"},
    "double precision": {"JAX_ENABLE_X64": "1"},
    "no assertions": {"PYTHONOPTIMIZE": "1"},
    "no docstrings": {"PYTHONOPTIMIZE": "2"},
    "a compilation cache that cannot be written": {"JAX_COMPILATION_CACHE_DIR": "/proc/cache"},
    "a display that is not there": {"DISPLAY": ":99", "MPLBACKEND": "TkAgg"},
}
REFUSED = {
    "a platform that is not there": ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda"),
    "a platform that does not exist": ({"JAX_PLATFORMS": "abacus"}, "JAX_PLATFORMS=abacus"),
}

ALL_FLAGS = list(flags())
TOTAL = sum(
    map(
        len,
        (ALL_FLAGS, COMMANDS, SWEEPS, CONTENTS, DATA, ODD_IMAGES, ENVIRONMENTS, REFUSED),
    )
)


def test_the_table_is_long():
    assert TOTAL >= 150


def one_line(error, *words):
    text = str(error)
    assert all(word in text for word in words), text
    assert "\n" not in text.strip(), text
    assert len(text) > 20, text


def accepted(given):
    raise AssertionError(f"{given.line} was accepted")


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "words", "named"), ALL_FLAGS)
def test_a_wrong_flag_is_one_line_that_names_it(experiment, words, named, tmp_path):
    launcher = LAUNCHERS[experiment]._replace(execute=accepted)
    with pytest.raises(UsageError) as error:
        command.main(launcher, [f"--workdir={tmp_path / 'run'}", *words])
    one_line(error.value, named)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "words", "named"), COMMANDS)
def test_a_wrong_command_is_one_line_that_names_the_cause(
    experiment, words, named, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    where = [] if any("--workdir" in word for word in words) else [f"--workdir={tmp_path / 'run'}"]
    with pytest.raises((UsageError, train.WorkdirError)) as error:
        command.main(LAUNCHERS[experiment], [*where, *SHORT, *words])
    one_line(error.value, named)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "named"), SWEEPS)
def test_a_wrong_sweep_is_one_line(words, named):
    with pytest.raises(UsageError) as error:
        sweep.main(words)
    one_line(error.value, named)


@pytest.mark.slow
@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS)
def test_a_wrong_config_is_one_line(contents, tmp_path):
    (tmp_path / "config.json").write_bytes(contents)
    with pytest.raises((UsageError, train.WorkdirError)) as error:
        launch(sinusoid, "--mode=eval", f"--workdir={tmp_path}")
    one_line(error.value)
    assert (tmp_path / "config.json").read_bytes() == contents


@pytest.mark.slow
@pytest.mark.parametrize("write", DATA.values(), ids=DATA)
def test_wrong_data_are_one_line_and_nothing_of_them_is_executed(write, tmp_path):
    write(tmp_path / "data")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(tmp_path / "data", tmp_path / "cache")
    one_line(error.value)
    assert not Code.ran
    # Nothing but the cache's folder is beside the data.
    assert {path.name for path in tmp_path.iterdir()} <= {*before, "cache"}


@pytest.mark.slow
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_tables_of_other_programs_are_read(ending, mark, tmp_path):
    Source().write(tmp_path / "data")
    for path in (tmp_path / "data").glob("*.csv"):
        path.write_bytes(mark + ending.join(path.read_bytes().splitlines()) + ending)
    assert load(tmp_path / "data", tmp_path / "cache").train.names == ("n01", "n02", "n03")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ODD_IMAGES)
def test_images_of_odd_modes_are_read_or_named(mode, tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / f"1.{SUFFIX.get(mode, 'png')}"
    ODD_IMAGES[mode]().save(path)
    try:
        images = from_folder(tmp_path, size=8).images
    except ValueError as error:
        one_line(error, path.name)
    else:
        assert images.shape == (1, 1, 8, 8, 3)
        assert images.dtype == np.uint8


def run(environment, *words):
    changed = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    return subprocess.run(
        [sys.executable, "-m", "experiments.sinusoid", *words],
        cwd=ROOT,
        env=changed,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_run_ends_in_an_odd_environment(environment, tmp_path):
    done = run(environment, *SMALL, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["meta_steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "named"), REFUSED.values(), ids=REFUSED)
def test_an_environment_that_cannot_be_is_one_line(environment, named, tmp_path):
    done = run(environment, *SMALL, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert named in line
