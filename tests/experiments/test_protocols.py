"""The protocols: every cell of the tables, what the tasks are made of, and what is optimized."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from experiments import (
    few_shot,
    image_data,
    miniimagenet,
    omniglot,
    photographs,
    protocols,
    supervised,
)
from experiments.classification import BASELINES, HEADS
from experiments.settings import UsageError, check_bounds
from metajax.data import Images, Splits
from tests.experiments.launching import launch
from tests.helpers import assert_close

LAUNCHERS = (omniglot, miniimagenet, photographs)
ALL = {name: preset for module in LAUNCHERS for name, preset in module.EXPERIMENT.presets.items()}
SMALL = [
    "--num_meta_steps=2",
    "--meta_batch_size=2",
    "--steps_per_call=1",
    "--validate_every=2",
    "--checkpoint_every=2",
    "--eval_tasks=6",
]
STEPS = ["--num_eval_steps=2", "--validation_steps=1"]
FEW = "--validation_tasks=2"


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.slow)


def test_every_cell_of_the_tables_is_a_preset():
    assert set(protocols.PAPER_RESULTS) <= set(ALL)
    cells = [f"omniglot_{w}w{s}s" for w in (5, 20) for s in (1, 5)]
    cells += ["miniimagenet_5w1s", "miniimagenet_5w5s"]
    for cell in cells:
        for question in few_shot.QUESTIONS:
            assert question in protocols.PAPER_RESULTS[f"nichol2018/{cell}"]
        for suffix in ("", "_first_order"):
            assert "transductive" in protocols.PAPER_RESULTS[f"finn2017/{cell}{suffix}"]


@pytest.mark.parametrize("name", ALL)
def test_presets_are_complete_and_fit_together(name):
    settings = ALL[name]
    check_bounds(settings)
    settings.check()
    if settings.algorithm not in (*BASELINES, *HEADS):
        few_shot.make_learner(settings, metajax.cross_entropy(lambda params, x: x))
    few_shot.make_network(settings)(settings.ways)


@pytest.mark.parametrize("name", ["finn2017/omniglot_5w1s_no_conv"])
def test_beta_is_learned_and_not_adapted(name):
    settings = ALL[name]
    model = few_shot.make_network(settings)(5)
    x = jax.random.uniform(jax.random.key(0), (10, 16, 16, 1))
    params = model.init(jax.random.key(1), x)
    learner = few_shot.make_learner(settings, metajax.cross_entropy(model.apply))
    adapt = learner.inner.rebuild(num_steps=2)
    batch = x, jnp.arange(10) % 5
    adapted, _ = adapt.apply(metajax.MetaParams(params), batch, jax.random.key(2))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, adapted)
    for path, unchanged in jax.tree_util.tree_leaves_with_path(same):
        assert unchanged == ("BatchNorm" in jax.tree_util.keystr(path)), path
    assert not any("scale" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(same))


@pytest.mark.parametrize(("name", "factor"), [("5w1s", 75), ("5w5s", 15)])
def test_the_clip_is_on_the_authors_scale(name, factor):
    """Their outer loss is `factor` times the mean, and Adam's epsilon and the clip see that."""
    settings = ALL[f"finn2017/miniimagenet_{name}"]
    gradient = jnp.asarray([1e-9, 1.0, -10.0, 20.0]) / factor
    ours, theirs = supervised.make_outer_optimizer(settings), optax.adam(1e-3)
    clipped = jnp.asarray([1e-9, 1.0, -10.0, 10.0])
    after = jnp.zeros(4)
    state, expected = ours.init(after), theirs.init(after)
    for scale in (1.0, 0.5):
        found, state = ours.update(scale * gradient, state)
        wanted, expected = theirs.update(jnp.clip(scale * factor * gradient, -10, 10), expected)
        assert_close(found, wanted, rtol=1e-5)
    assert_close(jnp.clip(factor * gradient, -10, 10), clipped)


def test_what_nichol_trains_on(random_images):
    grey = random_images["omniglot"]
    data = image_data.load(ALL["nichol2018/omniglot_5w1s"], None)
    trained = np.concatenate([grey.train.images, grey.validation.images])
    assert len(data.train) == 4 * len(trained) == len(set(data.train.names))
    np.testing.assert_array_equal(data.train.images[: len(trained)], 255 - trained)
    for turns in range(4):
        np.testing.assert_array_equal(
            data.train.images[turns * len(trained) + 3, 7], np.rot90(255 - trained[3, 7], turns)
        )
    np.testing.assert_array_equal(data.test.images, 255 - grey.test.images)
    assert not image_data.make_tasks(ALL["nichol2018/omniglot_5w1s"], data, "test").rotate
    finn = image_data.load(ALL["finn2017/omniglot_5w1s"], None)
    np.testing.assert_array_equal(finn.train.images, grey.train.images)
    assert image_data.make_tasks(ALL["finn2017/omniglot_5w1s"], finn, "test").rotate


@pytest.mark.parametrize(
    ("experiment", "preset", "changes"),
    [
        (miniimagenet, "finn2017/miniimagenet_5w1s_first_order", ["--queries=2"]),
        (miniimagenet, "finn2017/miniimagenet_5w1s_fine_tuning", []),
        slow(miniimagenet, "finn2017/miniimagenet_5w1s_nearest_neighbour", []),
        slow(omniglot, "nichol2018/omniglot_5w1s_fomaml_separate_tail", ["--carry=serial"]),
        slow(omniglot, "beyond/maml_plus_plus_omniglot_5w1s", ["--first_order_updates=1"]),
        slow(omniglot, "nichol2018/omniglot_5w1s_fomaml", ["--batches=replacement"]),
    ],
)
def test_presets_run(experiment, preset, changes, random_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(few_shot, "TASKS_PER_CALL", 4)
    arguments = [*SMALL, *changes, f"--preset={preset}", "--eval_queries=2"]
    arguments += [] if preset.endswith("nearest_neighbour") else STEPS
    if ALL[preset].choose == "validation":
        arguments.append(FEW)
    arguments += [] if "plus_plus" in preset else ["--network=mlp"]
    launch(experiment, *arguments, f"--workdir={tmp_path}")
    result = json.loads((tmp_path / "result.json").read_text())
    rows = result["evaluation"]["accuracy"]
    steps = [0] if preset.endswith("nearest_neighbour") else [0, 1, 2]
    assert rows["transductive"]["steps"] == rows["non_transductive"]["steps"] == steps
    for row in rows.values():
        assert row["num_tasks"] == 6
        assert np.isfinite(row["ci95"]).all()
    assert result["audit"]["disjoint"] == {"classes": True, "images": True}
    assert result["audit"]["episodes"]["test"]["shared_images"] == 0
    assert f"--preset={preset}" in result["command"]
    assert ("paper" in capsys.readouterr().out) == (preset in protocols.PAPER_RESULTS)


@pytest.mark.slow
def test_devices_share_the_tasks(random_images, tmp_path):
    found = []
    for devices in (1, 2):
        workdir = tmp_path / str(devices)
        launch(
            miniimagenet, *SMALL, *STEPS, FEW, "--network=mlp", "--queries=2", "--eval_queries=2",
            f"--num_devices={devices}", f"--workdir={workdir}",
        )  # fmt: skip
        found.append(json.loads((workdir / "result.json").read_text()))
    one, two = (result["evaluation"]["accuracy"]["transductive"]["mean"] for result in found)
    np.testing.assert_allclose(one, two)
    assert [result["num_devices"] for result in found] == [1, 2]


def test_other_test_classes_than_in_training_are_refused(random_images, tmp_path):
    where = ["--network=mlp", f"--workdir={tmp_path}"]
    launch(omniglot, *SMALL, *STEPS, FEW, *where)
    grey = random_images["omniglot"]
    names = (*grey.test.names[:-1], "another")
    random_images["omniglot"] = grey._replace(test=Images(grey.test.images, names))
    with pytest.raises(UsageError, match="the classes of test are not those"):
        launch(omniglot, "--mode=eval", *where[1:])


def test_shared_classes_are_refused(random_images, tmp_path):
    grey = random_images["omniglot"]
    names = (grey.train.names[0], *grey.test.names[1:])
    random_images["omniglot"] = grey._replace(test=Images(grey.test.images, names))
    with pytest.raises(UsageError, match="the sets share classes"):
        launch(omniglot, *SMALL, *STEPS, FEW, f"--workdir={tmp_path}")


@pytest.mark.parametrize(
    "algorithm",
    [
        "prototypical",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("matching", "r2d2", "metaoptnet")
        ),
    ],
)
def test_heads_train_on_more_classes_than_they_are_tested_on(tmp_path, random_images, algorithm):
    few = [
        "--preset=snell2017/omniglot_5w1s",
        *SMALL,
        "--validation_tasks=2",
        "--train_ways=6",
        "--ways=3",
        "--eval_queries=2",
        "--network=conv_nichol",
    ]
    launch(omniglot, *few, f"--algorithm={algorithm}", f"--workdir={tmp_path}")
    rows = json.loads((tmp_path / "result.json").read_text())["evaluation"]["accuracy"]
    for row in rows.values():
        assert row["steps"] == [0]
        assert row["num_tasks"] == 6
        assert 0 <= row["mean"][0] <= 1
    with pytest.raises(UsageError, match=f"{algorithm} takes no steps"):
        launch(omniglot, *few, f"--algorithm={algorithm}", "--num_eval_steps=2")


def test_the_episodes_of_snell_2017():
    settings = ALL["snell2017/omniglot_5w1s"]
    assert (settings.train_ways, settings.ways, settings.queries) == (60, 5, 5)
    schedule = supervised.make_schedule(settings, settings.outer_learning_rate)
    assert [float(schedule(step)) for step in (0, 1_999, 2_000, 4_000)] == pytest.approx(
        [1e-3, 1e-3, 5e-4, 2.5e-4]
    )
    data = Images(np.zeros((80, 20, 28, 28, 1), np.uint8), tuple(map(str, range(80))))
    train_tasks = image_data.make_tasks(settings, Splits(data, data, data), "train").sample(
        jax.random.key(0)
    )
    assert train_tasks.support[0].shape == (60, 28, 28, 1)
    assert train_tasks.query[0].shape == (300, 28, 28, 1)
    model = few_shot.make_network(settings)(5)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert params["params"]["head"]["kernel"].shape == (64, 5)
