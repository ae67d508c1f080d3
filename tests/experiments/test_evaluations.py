"""`--mode=eval`: runs that are evaluated once more."""

import json

import pytest

from experiments import omniglot, sinusoid
from experiments.settings import UsageError
from metajax import train
from tests.experiments.launching import SMALL, launch


def test_evaluation_keeps_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "experiment": "sinusoid",
                "preset": "finn2017",
                "algorithm": "maml",
                "overrides": [],
                "seed": 0,
            }
        )
    )
    with pytest.raises(UsageError, match="leave out --seed"):
        launch(sinusoid, "--mode=eval", "--seed=1", f"--workdir={tmp_path}")
    with pytest.raises(UsageError, match="of the experiment sinusoid"):
        launch(omniglot, "--mode=eval", f"--workdir={tmp_path}")


def test_what_a_read_only_run_is_asked_is_printed_all_the_same(tmp_path, capsys, monkeypatch):
    launch(sinusoid, *SMALL, f"--workdir={tmp_path}")
    capsys.readouterr()

    def refuse(path, value):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(train, "write_json", refuse)
    with pytest.raises(train.WorkdirError, match="evaluations/3-2 cannot be read or written"):
        launch(
            sinusoid, "--mode=eval", "--eval_tasks=3", "--num_eval_steps=2", f"--workdir={tmp_path}"
        )
    assert "after each adaptation step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[]", "is not a JSON object"),
        ("config.json", "null", "is not a JSON object"),
        ("config.json", '{"experiment": "sinusoid"}', "has no preset: it is damaged"),
        (
            "config.json",
            '{"experiment": "sinusoid", "preset": "finn2017", "algorithm": "maml", '
            '"overrides": [], "num_meta_steps": "many"}',
            "has num_meta_steps=many: it is damaged",
        ),
        (
            "config.json",
            '{"experiment": "sinusoid", "preset": "finn2017", "algorithm": "maml", '
            '"overrides": ["inner_learning_rate"]}',
            "has no inner_learning_rate: it is damaged",
        ),
        ("result.json", '{"config": 5}', "result.json has no config: it is damaged"),
        (
            "result.json",
            '{"config": {"eval_tasks": true}}',
            "result.json has eval_tasks=True: it is damaged",
        ),
        ("metrics.jsonl", "no JSON", "line 1 of .*metrics.jsonl is damaged"),
    ],
)
def test_a_damaged_run_is_not_evaluated(tmp_path, name, text, message):
    whole = {"experiment": "sinusoid", "preset": "finn2017", "algorithm": "maml", "overrides": []}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    (tmp_path / name).write_text(text)
    with pytest.raises((UsageError, train.WorkdirError), match=message):
        launch(sinusoid, "--mode=eval", f"--workdir={tmp_path}")
