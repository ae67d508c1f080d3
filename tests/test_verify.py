"""The weights of records give the recorded numbers."""

import json
import os
import shlex
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.results_folder import RESULTS, record_folder
from benchmarks.verify import differences, verify
from experiments import command
from experiments.launchers import EXPERIMENTS
from experiments.settings import setting_rules
from metajax.train.weights import FILE

RECORDS = {
    "sinusoid": "sinusoid/finn2017/maml/seed0",
    "omniglot": "omniglot/finn2017/omniglot_5w1s_no_conv/maml/seed0",
    "navigation": "navigation/finn2017/maml/seed0",
}


@pytest.fixture
def data(request):
    if request.getfixturevalue("family") == "omniglot" and "TFDS_DATA_DIR" not in os.environ:
        pytest.skip("needs a prepared Omniglot in $TFDS_DATA_DIR")


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("family", RECORDS)
def test_a_record_of_each_family(family, capsys):
    assert verify(RESULTS / RECORDS[family], quick=True)
    assert "largest difference" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["sinusoid"])
def test_other_weights_are_found_out(family, tmp_path, capsys):
    shutil.copytree(RESULTS / RECORDS[family], tmp_path, dirs_exist_ok=True)
    arrays = load_file(tmp_path / FILE)
    name = max(arrays, key=lambda name: arrays[name].size)
    save_file({**arrays, name: arrays[name] + 0.1}, tmp_path / FILE)
    result = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**result, "weights": {}}))
    assert not verify(tmp_path, quick=True)
    assert "mse/K=5 differs by" in capsys.readouterr().out


def test_differences_are_relative_to_the_largest_number_of_a_row():
    recorded = {"mse": {"K=5": {"mean": [4.0, 2.0]}, "other": {"mean": [1.0]}}}
    found = {"mse": {"K=5": {"mean": [4.0, 2.2]}, "absent": {"mean": [0.0]}}}
    assert dict(differences(found, recorded)) == {"mse/K=5": pytest.approx(0.05)}


each_record = pytest.mark.parametrize(
    "path",
    sorted(RESULTS.rglob("result.json")),
    ids=lambda path: str(path.parent.relative_to(RESULTS)),
)


@each_record
def test_the_command_of_a_record_is_accepted(path):
    _, _, module, *words = shlex.split(json.loads(path.read_text())["command"])
    (launcher,) = (each for each in EXPERIMENTS if f"experiments.{each.name}" == module)
    given = launcher.parse(words)
    preset = given.get("preset", next(iter(launcher.presets)))
    changes = {k: v for k, v in given.items() if k not in setting_rules(launcher.launch)}
    settings, _ = command.with_changes(launcher, preset, changes)
    command.check(launcher, preset, changes, settings)


@each_record
def test_a_record_lies_where_its_settings_say(path):
    result = json.loads(path.read_text())
    assert path.parent == RESULTS / record_folder(result)
    assert np.isfinite(result["wall_seconds"])
