"""Sweeps: a command a line, none for what is finished, and a table over seeds."""

import json
import shlex

import numpy as np
import pytest

from experiments import omniglot, sinusoid, sweep
from experiments.settings import UsageError
from tests.experiments.launching import SMALL, launch

PRESET = "finn2017/omniglot_5w1s"


def test_a_command_for_each_seed_and_value():
    lines = sweep.main([PRESET, "--seeds=0:3", "--vary", "shots=1,5"]).splitlines()
    assert len({*lines}) == 6
    assert lines[3] == (
        "python -m experiments.omniglot --preset=finn2017/omniglot_5w1s --seed=0 --shots=5 "
        "--workdir=runs/omniglot/finn2017/omniglot_5w1s/shots=5/seed0"
    )


def test_presets_of_several_launchers_and_values_in_all_combinations():
    words = ["sinusoid:finn2017", "two_steps", "--vary=num_steps=1,2", "--vary", "seed_=1"]
    with pytest.raises(UsageError, match="seed_"):
        sweep.main(words)
    found = sweep.main([*words[:3], "--vary=meta_batch_size=2,4", "--seeds=7"]).splitlines()
    assert [line.split()[2] for line in found] == ["experiments.sinusoid"] * 4 + [
        "experiments.navigation"
    ] * 4
    assert "/num_steps=2,meta_batch_size=4/seed7" in found[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing is no preset"),
        (["omniglot:finn2017"], "is no preset"),
        (["finn2017"], "write sinusoid:finn2017 or navigation:finn2017"),
        (["nichol2018/reptile_batches"], "is no preset"),
        ([PRESET, "--seeds=3:3"], "--seeds=3:3 must be as 0:3"),
        ([PRESET, "--seeds=1,1"], "none twice"),
        ([PRESET, "--seeds=-1"], "must be as 0:3"),
        ([PRESET, "--seeds=x"], "must be as 0:3"),
        ([PRESET, PRESET], "a preset is given twice"),
        ([PRESET, "--vary=shots"], "must be NAME=VALUE,VALUE"),
        ([PRESET, "--vary=shots=1,1"], "none twice"),
        ([PRESET, "--vary=shots=1,"], "must be NAME=VALUE,VALUE"),
        ([PRESET, "--vary=seed=1,2"], "seed is given elsewhere"),
        ([PRESET, "--vary=shots=1", "--vary=shots=2"], "shots is given elsewhere"),
        ([PRESET, "--vary=shots=one"], "shots"),
        ([PRESET, "--vary=shots=0,1"], "shots"),
        ([PRESET, "--vary=shot=1"], "shot"),
        ([PRESET, "--vary=validate_every=7"], "must be a multiple of"),
        ([PRESET, "--table", "--runs=/nowhere"], "no run of the sweep is finished in /nowhere"),
    ],
)
def test_what_a_launcher_would_refuse_is_refused_at_once(words, message):
    with pytest.raises(UsageError, match=message):
        sweep.main(words)


def write(workdir, config, means):
    workdir.mkdir(parents=True)
    row = {"mean": means, "ci95": [0.0] * len(means), "num_tasks": 9}
    result = {"config": config, "evaluation": {"mse": {"K=5": row}}}
    (workdir / "result.json").write_text(json.dumps(result))


def test_finished_runs_are_skipped_and_gathered_with_an_interval(tmp_path):
    words = ["sinusoid:finn2017", "--seeds=0:4", f"--runs={tmp_path}"]
    runs = sweep.make_runs(words[:1], range(4), {})
    for run, error in zip(runs[:3], (1.0, 2.0, 3.0), strict=True):
        write(run.workdir(tmp_path), sweep.configuration(run), [9.0, 5.0, 4.0, error])
    write(runs[3].workdir(tmp_path), {**sweep.configuration(runs[3]), "num_steps": 7}, [0.0])
    (line,) = sweep.main(words).splitlines()
    assert "--seed=3" in line
    table = [row.split() for row in sweep.main([*words, "--table"]).splitlines()]
    assert [row[3] for row in table[1:4]] == ["0", "1", "3"]
    # Student's 0.975 quantile for two degrees of freedom is 4.3027, the standard deviation 1.
    half_width = 4.3027 / np.sqrt(3)
    assert table[3][:5] == ["sinusoid/finn2017", "3", "mse/K=5", "3", "2.0000"]
    assert float(table[3][6]) == pytest.approx(half_width, abs=1e-4)
    assert table[1][4:] == ["9.0000", "±", "0.0000"]
    assert " ".join(table[4]) == "1 of 4 runs are not finished"


@pytest.mark.slow
def test_the_lines_are_commands_that_finish_the_sweep(tmp_path):
    small = [f"--vary={word.removeprefix('--')}" for word in SMALL]
    words = ["sinusoid:finn2017", "--seeds=0:2", f"--runs={tmp_path}", *small]
    for line in sweep.main(words).splitlines():
        _, _, module, *flags = shlex.split(line)
        assert module == "experiments.sinusoid"
        launch(sinusoid, *flags)
    assert sweep.main(words) == ""
    assert " 2 " in sweep.main([*words, "--table"]).splitlines()[1]


def test_every_launcher_of_single_runs_can_be_swept():
    assert sweep.find(PRESET) == (omniglot.EXPERIMENT, PRESET)
    for each in sweep.EXPERIMENTS:
        if each.build is not None:
            preset = next(iter(each.presets))
            assert sweep.find(f"{each.name}:{preset}") == (each, preset)


def test_one_seed_is_not_an_abbreviation_of_many(capsys):
    with pytest.raises(SystemExit, match=r"^error: unrecognized arguments: --seed=3; --help"):
        sweep.main([PRESET, "--seed=3"])
    assert capsys.readouterr().err == ""


def test_the_same_run_is_not_made_twice():
    with pytest.raises(UsageError, match="shots=05 is the same run as another one"):
        sweep.main([PRESET, "--vary=shots=5,05"])


def test_a_folder_of_data_is_given_to_every_run(tmp_path):
    (line,) = sweep.main(["finn2017/folder_5w1s", "--vary=data_dir=/images"]).splitlines()
    assert "--data_dir=/images --workdir=runs/images/finn2017/folder_5w1s/data_dir=_images" in line


def test_a_result_of_something_else_is_named(tmp_path):
    path = tmp_path / "omniglot" / PRESET / "seed0" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"result\.json is not what a launcher writes: remove it"):
        sweep.main([PRESET, f"--runs={tmp_path}"])
