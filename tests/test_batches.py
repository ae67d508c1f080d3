"""What each inner step sees."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax

SUPPORT = {"x": jnp.arange(5), "y": 10 * jnp.arange(5)}
KEY = jax.random.key(0)


def drawn(batches, steps):
    at = batches(SUPPORT, steps, KEY)
    seen = [at(step) for step in range(steps)]
    for batch in seen:
        np.testing.assert_array_equal(batch["y"], 10 * batch["x"])  # rows stay together
    return [batch["x"].tolist() for batch in seen]


def test_full_batch_is_the_support():
    assert drawn(metajax.full_batch(), 2) == [[0, 1, 2, 3, 4]] * 2


def test_cycle_sees_every_example_once_per_epoch_and_straddles_epochs():
    seen = list(itertools.chain(*drawn(metajax.cycle(2), 10)))
    epochs = [seen[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_replacement_draws_distinct_examples_independently():
    batches = drawn(metajax.replacement(3), 30)
    assert all(len(set(batch)) == 3 for batch in batches)
    # Cycling would take five different examples in a row, from the first on.
    draws = list(itertools.chain(*batches))
    assert any(len(set(draws[i : i + 5])) < 5 for i in range(0, 90, 5))
    assert np.bincount(draws, minlength=5).min() >= 8


def test_per_step_reads_the_leading_axis():
    assert drawn(metajax.per_step(), 5) == [0, 1, 2, 3, 4]


def test_the_inner_loop_takes_the_batches_in_order():
    def loss(params, batch, rng):
        return params * batch, {"batch": batch}

    adapt = metajax.inner_loop(loss, optax.sgd(1.0), 3, batches=metajax.per_step())
    params, info = adapt.apply(metajax.MetaParams(jnp.zeros(())), jnp.asarray([1.0, 2.0, 4.0]), KEY)
    assert params == -7
    np.testing.assert_array_equal(info.aux["batch"], [1, 2, 4])


@pytest.mark.parametrize("batches", [metajax.cycle, metajax.replacement])
def test_errors_name_both_sizes(batches):
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        batches(0)
    with pytest.raises(ValueError, match="batch_size=6 exceeds the 5 examples"):
        batches(6)(SUPPORT, 1, KEY)
    with pytest.raises(ValueError, match=r"\['z'\] has 4 examples.*\['x'\] has 5"):
        batches(2)({"x": jnp.arange(5), "z": jnp.arange(4)}, 1, KEY)


def test_per_step_names_the_shape_and_the_steps():
    with pytest.raises(ValueError, match=r"support\['x'\] has shape \(5,\).*the 3 inner steps"):
        metajax.per_step()(SUPPORT, 3, KEY)


@pytest.mark.parametrize("batches", [metajax.cycle, metajax.replacement])
def test_a_scalar_has_no_examples_to_draw(batches):
    with pytest.raises(ValueError, match=r"support\['z'\] is a scalar"):
        batches(2)({"x": jnp.arange(5), "z": jnp.ones(())}, 1, KEY)


@pytest.mark.parametrize(
    "batches",
    [metajax.full_batch(), metajax.cycle(2), metajax.replacement(2), metajax.per_step()],
)
def test_the_support_may_be_numpy(batches):
    def loss(params, batch, rng):
        return params * jnp.mean(batch), {}

    learner = metajax.maml(loss, optax.sgd(1.0), optax.sgd(1.0), num_steps=3, batches=batches)
    # Any draw from equal examples is the same.
    adapted = learner.adapt(learner.init(jnp.zeros(())), np.full((3, 2), 2.0), KEY)
    assert adapted == -6


def test_the_support_may_be_numbers():
    learner = metajax.maml(
        lambda params, batch, rng: (params * batch["a"].astype(float), {}),
        optax.sgd(1.0),
        optax.sgd(1.0),
    )
    assert learner.adapt(learner.init(0.0), {"a": 2.0}, KEY) == -2


@pytest.mark.parametrize("batches", [metajax.cycle(2), metajax.replacement(2)])
def test_no_padding_is_drawn(batches):
    support = {"x": jnp.arange(6), "mask": jnp.asarray([0, 1, 1, 0, 1, 0]) > 0}

    @jax.jit
    def drawn(key):
        at = batches(support, 30, key)
        return jax.vmap(lambda step: at(step)["x"])(jnp.arange(30))

    rows = np.asarray(drawn(jax.random.key(3)))
    assert set(rows.ravel()) == {1, 2, 4}


def test_a_cycle_sees_every_example_before_any_again():
    support = (jnp.arange(6), jnp.arange(6), jnp.asarray([0, 1, 1, 0, 1, 0]) > 0)
    at = metajax.cycle(2)(support, 30, jax.random.key(0))
    rows = np.concatenate([np.asarray(at(step)[0]) for step in range(30)]).reshape(-1, 3)
    assert all(set(epoch) == {1, 2, 4} for epoch in rows)
    assert len({tuple(epoch) for epoch in rows}) > 1  # shuffled anew


def test_a_batch_with_replacement_holds_no_example_twice():
    support = {"x": jnp.arange(6), "mask": jnp.arange(6) < 4}
    at = metajax.replacement(3)(support, 9, jax.random.key(0))
    assert all(len(set(np.asarray(at(step)["x"]).tolist())) == 3 for step in range(9))


def test_a_batch_larger_than_the_task_repeats_its_examples():
    support = jnp.arange(4.0), jnp.zeros(4), jnp.asarray([True, False, True, False])
    at = metajax.replacement(3)(support, 5, jax.random.key(0))
    for step in range(5):
        x, _, mask = at(step)
        assert set(x.tolist()) == {0.0, 2.0}
        assert mask.all()


def test_a_mask_of_another_kind_is_data():
    """An attention mask, for example."""
    support = {"x": jnp.arange(12.0).reshape(4, 3), "mask": jnp.ones((4, 3), bool)}
    for batches in (metajax.cycle(2), metajax.replacement(2)):
        batch = batches(support, 2, jax.random.key(0))(0)
        assert batch["x"].shape == batch["mask"].shape == (2, 3)
