"""Several runs in one table and one figure."""

import json
import sys

import pytest

from experiments import compare


def make_run(folder, *, evaluation, metrics=(), **config):
    result = {
        "config": {"overrides": [], **config},
        "best_step": 4,
        "device": {"kind": "a processor"},
        "num_devices": 1,
        "wall_seconds": 1.4,
        "commit": "0123456789abcdef",
        "versions": {"jax": "1.0"},
        "evaluation": evaluation,
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    if metrics:
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in metrics))
    return folder


@pytest.fixture
def runs(tmp_path):
    curve = [{"step": 2, "validation/mse": 3.0}, {"step": 4, "validation/mse": 2.0}]
    rows = {"mean": [3.0, 1.0, 0.51234], "ci95": [0.5, 0.25, 0.0123], "num_tasks": 9}
    sparse = {"steps": [0, 1, 9], "mean": [0.2, 0.5, 0.75], "ci95": [0.1, 0.1, 0.05]}
    return [
        make_run(
            tmp_path / "runs" / "maml" / "seed0",
            evaluation={"mse": {"K=5": rows, "K=10": sparse}},
            metrics=curve,
            algorithm="maml",
            shots=10,
        ),
        make_run(
            tmp_path / "runs" / "reptile" / "seed0",
            evaluation={"mse": {"K=5": rows}, "sweep": {"accuracy": 0.9, "ci95": 0.01}},
            algorithm="reptile",
            shots=10,
            num_steps=5,
        ),
    ]


def test_the_table_has_what_differs_and_the_results(runs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, runs), "--out", str(out)])
    compare.main()
    found = [compare.read(path, name) for path, name in zip(runs, ("a", "b"), strict=True)]
    assert compare.table(found) == [
        ["", "a", "b"],
        ["algorithm", "maml", "reptile"],
        ["num_steps", "", "5"],
        ["mse K=5, 0 steps", "3 ± 0.5", "3 ± 0.5"],
        ["mse K=5, 1 step", "1 ± 0.25", "1 ± 0.25"],
        ["mse K=5, 2 steps", "0.5123 ± 0.012", "0.5123 ± 0.012"],
        ["mse K=10, 0 steps", "0.2 ± 0.1", ""],
        ["mse K=10, 1 step", "0.5 ± 0.1", ""],
        ["mse K=10, 9 steps", "0.75 ± 0.05", ""],
        ["sweep", "", "0.9 ± 0.01"],
    ]
    text = (out / "comparison.txt").read_text()
    assert text.split("\n")[0].split() == ["maml", "reptile"]  # the parts that differ
    assert text.strip() in capsys.readouterr().out
    html = (out / "comparison.html").read_text()
    assert "<tr><th>mse K=5, 1 step</th><td>1 ± 0.25</td><td>1 ± 0.25</td></tr>" in html
    assert html.count("data:image/png;base64,iVBOR") == 1
    assert "http" not in html
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "comparison.pdf").read_bytes().startswith(b"%PDF")


def test_the_figure_has_a_line_for_each_run(runs, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(compare.plots, "comparison", lambda path, *args, **kw: drawn.update(a=args))
    compare.draw(tmp_path, [compare.read(path, path.parent.name) for path in runs])
    panels, curves = drawn["a"]
    assert {name: list(of_runs) for name, of_runs in panels.items()} == {
        "mse K=5": ["maml", "reptile"]
    }
    assert curves == {"maml": [(2, 3.0), (4, 2.0)], "reptile": []}


def test_runs_are_named_by_the_parts_in_which_they_differ(tmp_path):
    paths = [tmp_path / each for each in ("x/maml/seed0", "x/maml/seed1", "x/reptile/seed0")]
    assert compare.names(paths) == ["maml/seed0", "maml/seed1", "reptile/seed0"]
    assert compare.names(paths[:1]) == ["seed0"]


@pytest.mark.parametrize(
    ("given", "message"), [(["missing"], "missing has no result.json"), (["a", "a"], "named twice")]
)
def test_what_cannot_be_compared_is_an_error(given, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", *given, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        compare.main()


@pytest.mark.parametrize("content", ["{}", '{"config": 3}'])
def test_a_result_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match="is not what a launcher writes"):
        compare.read(tmp_path, "run")


def test_a_folder_that_cannot_be_written_is_named(runs, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, runs), f"--out={tmp_path / 'file'}"])
    with pytest.raises(SystemExit, match=r"^error: --out=.*file cannot be written .*: name a fold"):
        compare.main()
