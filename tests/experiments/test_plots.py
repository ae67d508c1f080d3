"""The figures of the launchers."""

import errno
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from experiments import plots


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_a_full_disk_is_an_error_of_the_system(tmp_path, kind):
    (tmp_path / f"figure.{kind}").symlink_to("/dev/full")
    figure, axes = plt.subplots()
    axes.set_title("A title, whose font a PDF embeds")
    with pytest.raises(OSError) as error:
        plots.save(figure, tmp_path / "figure.png")
    assert error.value.errno == errno.ENOSPC
    plt.close(figure)


def test_the_same_figure_is_the_same_file(tmp_path):
    contents = []
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot([1, 2])
        plots.save(figure, tmp_path / "figure.png")
        contents.append([(tmp_path / f"figure.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert contents[0] == contents[1]
    assert [content[:4] for content in contents[0]] == [b"\x89PNG", b"%PDF"]


def test_results_without_steps_are_told_apart():
    _, axes = plt.subplots()
    rows = {name: {"mean": [at], "ci95": [0.1], "steps": [0]} for at, name in enumerate("ab")}
    plots._by_step(axes, rows)
    assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines) == 2
