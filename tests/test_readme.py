"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    short = code.replace("range(10_000)", "range(3)")
    assert short != code
    names = {}
    with jax.numpy_rank_promotion("allow"):
        exec(short, names)
    assert int(names["state"].step) == 3
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(names["adapted"]))


def test_the_results_are_those_of_the_records():
    from benchmarks import report

    assert report.render() == README


def test_linked_files_exist():
    for target in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / target).exists(), target
