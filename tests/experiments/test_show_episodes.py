"""The picture of a preset: every image in its place, and the flags of the experiment count."""

import numpy as np
import pytest

from experiments import command, plots, show_episodes
from experiments.settings import UsageError
from metajax.data import Images, Splits
from tests.experiments.conftest import replace_data


@pytest.fixture
def sheets(monkeypatch):
    """Replaces Omniglot by images of one value each, and records what is drawn."""

    def images(first, classes):
        values = np.arange(first, first + classes, dtype=np.uint8)[:, None] + np.zeros((1, 20))
        return np.broadcast_to(values[..., None, None, None], (classes, 20, 8, 8, 1)).astype("u1")

    def of_names(array):
        return Images(array, tuple(f"{array.flat[0]} {i}" for i in range(len(array))))

    loaded = Splits(*(of_names(images(*part)) for part in ((10, 30), (100, 20), (200, 40))))
    replace_data(monkeypatch, {"omniglot": loaded}, "omniglot")
    drawn = []

    def contact_sheet(path, tasks, **settings):
        drawn.append(tasks)
        original(path, tasks, **settings)

    original = plots.contact_sheet
    monkeypatch.setattr(plots, "contact_sheet", contact_sheet)
    return drawn


def launch(*arguments):
    assert command.main(show_episodes.EXPERIMENT, arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "ways", "shots", "queries", "values"),
    [
        (["--preset=finn2017/omniglot_5w5s"], 5, 5, 5, (10, 40)),
        (["--part=validation", "--eval_queries=3"], 5, 1, 3, (100, 120)),
        (["--part=test", "--algorithm=reptile"], 5, 1, 1, (200, 240)),
        (["--algorithm=reptile", "--ways=20"], 20, 10, 1, (10, 40)),
        # Dark ink, and the validation classes are trained on.
        (["--preset=nichol2018/omniglot_5w5s", "--part=test"], 5, 5, 1, (15, 55)),
        (["--preset=nichol2018/omniglot_20w1s"], 20, 10, 1, (135, 245)),
        # Settings of a training need not fit: no validation classes, batches beyond the support.
        (["--train_on=train+validation"], 5, 1, 1, (10, 120)),
        (["--preset=nichol2018/omniglot_5w1s", "--train_shots=1"], 5, 1, 1, (135, 245)),
        # More classes in training than in tests.
        (["--preset=snell2017/omniglot_5w1s", "--train_ways=7"], 7, 1, 5, (10, 40)),
    ],
)
def test_tasks_are_those_of_the_flags(arguments, ways, shots, queries, values, sheets, tmp_path):
    out = tmp_path / "new" / "sheet.png"
    launch(*arguments, "--num_tasks=3", f"--out={out}")
    assert out.read_bytes().startswith(b"\x89PNG")
    ((*tasks,),) = sheets
    assert len(tasks) == 3
    for support, query in tasks:
        assert support.shape == (ways, shots, 8, 8, 1)
        assert query.shape == (ways, queries, 8, 8, 1)
        found = np.rint(np.concatenate([support, query], axis=1)[..., 0, 0, 0] * 255)
        assert (found == found[:, :1]).all()  # each row is one class
        assert len(set(found[:, 0])) == ways or "nichol2018/omniglot_20w1s" in arguments[0]
        assert values[0] <= found.min() <= found.max() < values[1]


def test_classes_that_are_trained_on(sheets):
    with pytest.raises(UsageError, match="has no such classes"):
        launch("--preset=nichol2018/omniglot_5w1s", "--part=validation")


def test_a_file_that_cannot_be_written(sheets, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file/sheet.png", "sheet.nonsense"):
        with pytest.raises(UsageError, match=f"--out=.*{out} cannot be written"):
            launch(f"--out={tmp_path / out}")


def test_every_image_is_in_its_place():
    images = np.random.default_rng(0).uniform(size=(2, 3, 4, 5, 3))
    tiles = plots._tiles(images, 1)
    assert tiles.shape == (2 * 5, 3 * 6, 3)
    for row in range(2):
        for column in range(3):
            at = tiles[5 * row : 5 * row + 4, 6 * column : 6 * column + 5]
            np.testing.assert_array_equal(at, images[row, column])
    grey = plots._tiles(images[..., :1], 1)
    np.testing.assert_array_equal(grey[:4, :5], np.repeat(images[0, 0, ..., :1], 3, axis=-1))


@pytest.mark.parametrize("queries", [0, 2, 5])
def test_sheets_of_all_shapes_are_drawn(queries, tmp_path):
    path = tmp_path / "sheet.png"
    tasks = [(np.ones((3, 4, 7, 7, 1)), np.zeros((3, queries, 7, 7, 1)))] * 3
    plots.contact_sheet(path, tasks, title="tasks", num_shown=3)
    assert path.read_bytes().startswith(b"\x89PNG")
