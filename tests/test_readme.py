"""What the README shows runs as it stands there."""

import pkgutil
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_library_example_runs():
    code, family, *_ = EXAMPLES
    short = code.replace("range(10_000)", "range(3)")
    assert short != code
    names = {}
    with jax.numpy_rank_promotion("allow"):
        exec(short, names)
        exec(family, names)
    assert names["episodes"].support[0].shape == (25, 5, 1)
    assert int(names["state"].step) == 3
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(names["adapted"]))


def test_recorded_weights_name_a_drawing(tmp_path, monkeypatch, capsys):
    (code,) = (x for x in EXAMPLES if "from_folder" in x)
    monkeypatch.chdir(tmp_path)
    names = ["bar", "cross", "dot", "frame", "slope"]
    for name in names:
        draw(name, f"drawings/{name}/1.png")
    draw("cross", "unknown/one/1.png")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    exec(code, {})
    # Shapes as plain as these are told apart, although they are no characters.
    assert capsys.readouterr().out == "['cross']\n"


def test_the_example_of_reinforcement_learning_runs():
    (code,) = (x for x in EXAMPLES if "rl.inner_loop" in x)
    short = code.replace("range(500)", "range(1)").replace(" 20", " 4").replace(" 40", " 4")
    assert short.count(" 4") == 5
    names = {}
    with jax.numpy_rank_promotion("allow"):
        exec(short, names)
    assert int(names["state"].step) == 1
    assert names["returns"].shape == (4,)
    assert np.isfinite(names["returns"]).all()


def draw(name, path):
    picture = Image.new("L", (105, 105), 255)
    pen = ImageDraw.Draw(picture)
    lines = {
        "bar": [(52, 10, 52, 95)],
        "cross": [(10, 10, 95, 95), (95, 10, 10, 95)],
        "dot": [(45, 52, 60, 52)],
        "frame": [(15, 15, 90, 15), (90, 15, 90, 90), (90, 90, 15, 90), (15, 90, 15, 15)],
        "slope": [(10, 95, 95, 10)],
    }
    for line in lines[name]:
        pen.line(line, fill=0, width=4)
    Path(path).parent.mkdir(parents=True)
    picture.save(path)


def test_the_tables_are_those_of_the_records():
    from benchmarks import report

    for page in (report.README, report.PAGE):
        assert report.render(page) == page.read_text()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    for target in re.findall(r"\]\(([^):]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_is_importable(page):
    name = r"\b((?:metajax|experiments|benchmarks)(?:\.(?!md\b)\w+)+)"  # and no page, NAME.md
    names = set(re.findall(name, page.read_text()))
    for name in names:
        pkgutil.resolve_name(name)
