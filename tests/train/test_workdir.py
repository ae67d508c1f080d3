"""What a working directory takes for the same run, with and without a configuration; provenance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import FewShot, Sinusoid, StreamedFewShot
from metajax.train.workdir import claim
from tests.train.runs import assert_equal, fit, initial, learner, loss, own, validation


def run(workdir, learner_=None, **changes):
    return fit(learner_, workdir=workdir, **{"num_meta_steps": 20, **changes})


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was begun without a configuration."""
    workdir = tmp_path_factory.mktemp("begun")
    run(workdir)
    return workdir


def scaled(params, batch, rng):
    value, metrics = loss(params, batch, rng)
    return 2 * value, metrics


def otherwise(scale):
    return {**initial(), "b": jnp.full(8, scale)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learner_": learner(optax.adam(2e-3))}, "program"),
        ({"learner_": metajax.maml(loss, optax.sgd(0.02), optax.adam(1e-3), num_steps=2)}, "prog"),
        ({"learner_": metajax.maml(scaled, optax.sgd(0.01), optax.adam(1e-3), num_steps=2)}, "pr"),
        ({"meta_batch_size": 4}, "program"),
        ({"params": otherwise(1e-7)}, "initial state"),
        ({"key": jax.random.key(2)}, "key"),
        ({"tasks": Sinusoid(amplitude=(0.1, 4.0))}, "p"),
        ({"validation": validation()}, "validation"),
    ],
)
def test_another_run_is_refused(begun, changes, named):
    with pytest.raises(train.WorkdirError, match=f"another run, of which differs: .*{named}") as no:
        run(begun, **changes)
    assert "\n" not in str(no.value)
    assert "config=" in str(no.value)


def test_the_same_run_is_returned_and_may_be_lengthened(tmp_path):
    first = run(tmp_path, own())
    assert_equal(run(tmp_path, own()).state, first.state)
    assert int(run(tmp_path, own(), num_meta_steps=25).state.step) == 25
    # Calls of another length, and more steps after a part of one.
    longer = run(tmp_path, own(), num_meta_steps=60, steps_per_call=20)
    assert_equal(longer.state, fit(own()).state)
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [10, 20, 25, 40, 60]


@pytest.mark.parametrize("config", [None, {}, {"num_meta_steps": 60}])
def test_a_run_cannot_be_shortened(tmp_path, config):
    run(tmp_path, own(), num_meta_steps=40, config=config)
    with pytest.raises(train.WorkdirError, match=r"a run of 40 meta-steps, more than .*=20:"):
        run(tmp_path, own(), config=config)


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2, 1)


@pytest.mark.parametrize("kind", [FewShot, StreamedFewShot])
def test_other_data_are_another_run(tmp_path, kind):
    def go(images):
        tasks = kind(images, ways=2, shots=1, queries=1)
        return run(tmp_path, own(), tasks=tasks)

    first = go(IMAGES)
    assert_equal(go(IMAGES.copy()).state, first.state)
    with pytest.raises(train.WorkdirError, match="of which differs: tasks"):
        go(IMAGES + np.uint8(1))


def test_arrays_that_a_learner_closes_over_are_part_of_the_program(tmp_path):
    def go(sizes):
        return run(tmp_path, own(size=sizes), params=jnp.zeros(8))

    sizes = jnp.linspace(0.0, 1.0, 8)
    assert_equal(go(sizes).state, go(sizes.copy()).state)
    with pytest.raises(train.WorkdirError, match="of which differs: program"):
        go(sizes.at[3].add(1e-3))


def test_a_run_without_a_checkpoint_holds_nothing_up(tmp_path):
    with pytest.raises(train.NonFiniteError):
        run(tmp_path, own(bad_step=5))
    assert int(run(tmp_path, own()).state.step) == 20
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [10, 20]


def test_a_run_of_before_digests_is_continued_and_gets_some(tmp_path):
    run(tmp_path, own())
    digests = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text("{}\n")
    run(tmp_path, own(), num_meta_steps=30)
    assert (tmp_path / "config.json").read_text() == digests


def test_with_and_without_a_configuration_are_two_runs(tmp_path, begun):
    with pytest.raises(train.WorkdirError, match="begun without config=: leave it out"):
        run(begun, config={"seed": 0})
    run(tmp_path, own(), config={"seed": 0})
    with pytest.raises(train.WorkdirError, match="begun with config=: pass its configuration"):
        run(tmp_path, own())


def test_a_configuration_is_all_that_identifies_its_run(tmp_path):
    first = run(tmp_path, own(), config={"seed": 0})
    again = run(tmp_path, own(size=2.0), config={"seed": 0}, params=otherwise(1.0))
    assert_equal(first.state, again.state)


def test_digests_cost_no_trace(tmp_path):
    def traces(**changes):
        found = []

        def counted(params, batch, rng):
            found.append(1)
            return loss(params, batch, rng)

        maml = metajax.maml(counted, optax.sgd(0.01), optax.adam(1e-3), num_steps=2)
        adapt = metajax.inner_loop(counted, optax.sgd(0.01), 2)

        def measure(state, tasks, rng):
            episode = tasks.sample(rng)
            adapted, _ = adapt.apply(state.meta_params, episode.support, rng)
            return {"loss": counted(adapted, episode.query, rng)[0]}

        chosen = train.Validation(Sinusoid(), measure, "loss", "min")
        fit(maml, validation=chosen, num_meta_steps=20, **changes)
        return len(found)

    assert traces(workdir=tmp_path / "a") == traces(workdir=tmp_path / "b", config={}) == traces()


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    fit(own(), workdir=tmp_path, config={"rate": 0.1, "seed": 0})
    with pytest.raises(train.WorkdirError, match=r"rate: 0.1 there, 0.2 here\n  ways: absent"):
        fit(own(), workdir=tmp_path, config={"rate": 0.2, "seed": 0, "ways": 5})
    assert train.read_config(tmp_path) == {"rate": 0.1, "seed": 0}


def test_a_run_may_be_lengthened_and_says_so(tmp_path):
    lengths = [{"num_meta_steps": steps, "seed": 0} for steps in (20, 40, 60)]
    for config in lengths:
        fit(own(), workdir=tmp_path, config=config, num_meta_steps=config["num_meta_steps"])
    config = {**lengths[-1], "earlier_num_meta_steps": [20, 40]}
    assert train.read_config(tmp_path) == config
    at_once, continued = (
        fit(own(), workdir=where, config=lengths[-1]) for where in (None, tmp_path)
    )
    assert_equal(at_once.state, continued.state)
    assert train.read_config(tmp_path) == config
    for other in (lengths[0], {**lengths[-1], "num_meta_steps": 80, "seed": 1}):
        with pytest.raises(train.WorkdirError, match="num_meta_steps: 60 there"):
            fit(own(), workdir=tmp_path, config=other, num_meta_steps=other["num_meta_steps"])


def test_what_read_config_returns_continues_the_run(tmp_path):
    for steps in (20, 40):
        fit(own(), workdir=tmp_path, config={"num_meta_steps": steps}, num_meta_steps=steps)
    found = train.read_config(tmp_path)
    fit(own(), workdir=tmp_path, config=found, num_meta_steps=40)
    fit(own(), workdir=tmp_path, config={**found, "num_meta_steps": 60})
    assert train.read_config(tmp_path) == {
        "num_meta_steps": 60,
        "earlier_num_meta_steps": [20, 40],
    }


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (float("nan"), float("nan")),
        ([1, {"rate": float("inf")}], (1, {"rate": float("inf")})),
        (1, 1.0),
        ({"a": 1, "b": [2.0]}, {"b": [2.0], "a": 1}),
        (None, None),
    ],
)
def test_equal_configurations_are_one(tmp_path, there, here):
    claim(tmp_path, {"value": there})
    claim(tmp_path, {"value": here})


@pytest.mark.parametrize(
    ("there", "here"), [(None, "absent"), (0, 0.5), (float("nan"), 0.0), ([1, 2], [2, 1])]
)
def test_different_configurations_are_two(tmp_path, there, here):
    claim(tmp_path, {"value": there})
    with pytest.raises(train.WorkdirError, match=r"value: .* there, .* here"):
        claim(tmp_path, {} if here == "absent" else {"value": here})


def test_another_metric_does_not_continue_a_choice(tmp_path):
    fit(workdir=tmp_path, config={}, validation=validation())
    other = train.Validation(Sinusoid(), lambda *_: {"accuracy": jnp.ones(())}, "accuracy")
    with pytest.raises(train.WorkdirError, match="another metric than 'accuracy', one of 'mse'"):
        fit(workdir=tmp_path, config={}, validation=other)


def test_without_a_validation_the_metrics_of_one_are_dropped(tmp_path):
    fit(workdir=tmp_path, config={}, validation=validation(), num_meta_steps=20)
    result = fit(workdir=tmp_path, config={}, num_meta_steps=40)
    assert (result.best_step, result.best_metrics) == (40, {})


def test_checkpoints_of_an_unknown_configuration_are_refused(tmp_path):
    fit(own(), workdir=tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(train.WorkdirError, match=r"no config\.json that says of what"):
        fit(own(), workdir=tmp_path)


def test_provenance_names_device_versions_environment_and_commit(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    found = train.provenance.__wrapped__()
    assert found["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert found["device"]["platform"] == "cpu"
    assert found["versions"]["jax"] == jax.__version__
    assert "commit" in found


def test_the_commit_of_a_container_is_what_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("METAJAX_COMMIT", "0123456789")
    monkeypatch.setattr("metajax.train.workdir.__file__", str(tmp_path / "workdir.py"))
    assert train.provenance.__wrapped__()["commit"] == "0123456789"
