"""Tasks of varying ways and shots: the padded task has the numbers of the smaller one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.tasks import FewShot, Varied, few_shot_tasks, meta_batch
from tests.helpers import assert_close

KEY = jax.random.key(0)
WAYS, SHOTS, QUERIES = 4, 3, 2
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 6, 4, 4, 1), np.uint8)
FULL = FewShot(IMAGES, ways=WAYS, shots=SHOTS, queries=QUERIES)
VARIED = Varied(FULL, min_ways=2, min_shots=1)


def features(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["body"])


def apply(params, x):
    return features(params, x) @ params["head"]


PARAMS = {
    "body": jax.random.normal(KEY, (16, 5)),
    "head": jax.random.normal(jax.random.key(1), (5, WAYS)),
}


def test_ways_and_shots_are_uniform_and_the_rest_is_that_of_the_full_task():
    episodes = jax.jit(lambda rng: meta_batch(VARIED, 1000, rng))(KEY)
    support, query = episodes
    counts = support["mask"].reshape(1000, WAYS, SHOTS).sum(-1)
    ways = (counts > 0).sum(-1)
    assert (counts[:, 0] > 0).all()
    assert (jnp.diff((counts > 0).astype(int), axis=1) <= 0).all()  # the first classes remain
    for least in (2, 3, 4):
        assert jnp.mean(ways == least) == pytest.approx(1 / 3, abs=0.05)
    for shots in (1, 2, 3):
        assert jnp.mean(counts[:, 0] == shots) == pytest.approx(1 / 3, abs=0.05)
    asked = query["mask"].reshape(1000, WAYS, QUERIES).sum(-1)
    assert (asked == QUERIES * (counts > 0)).all()
    assert len({tuple(row) for row in counts.tolist()}) > 20  # shots differ between classes


def cut(batch):
    """The real examples of a padded batch, alone."""
    keep = np.flatnonzero(batch["mask"])
    return batch["x"][keep], batch["y"][keep]


@pytest.mark.parametrize("seed", [0])
def test_loss_and_gradient_are_those_of_the_smaller_task(seed):
    episode = VARIED.sample(jax.random.key(seed))
    small = metajax.Episode(cut(episode.support), cut(episode.query))
    assert len(small.support[1]) < WAYS * SHOTS
    loss = metajax.cross_entropy(apply)
    adapt = metajax.inner_loop(loss, optax.sgd(0.1), 2)
    heads = [metajax.prototypes(), metajax.ridge(), metajax.matching()]
    closed = [metajax.closed_form(features, head, ways=WAYS) for head in heads]
    losses = [metajax.cross_entropy(metajax.head_on(features, head)) for head in heads]
    for each, query_loss in zip([adapt, *closed], [loss, *losses], strict=True):
        objective = metajax.query_loss(query_loss)
        inner, _ = each.init(PARAMS)

        @jax.jit
        def gradient(episode, each=each, objective=objective, inner=inner):
            return jax.value_and_grad(
                lambda p: objective(each, metajax.MetaParams(p, inner), episode, KEY)[0]
            )(PARAMS)

        found, expected = gradient(episode), gradient(small)
        assert np.isfinite(expected[0])
        assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_heads_are_exact_for_the_number_of_ways_too():
    drawn = (VARIED.sample(jax.random.key(seed)) for seed in range(20))
    episode, ways = next(
        (episode, ways)
        for episode in drawn
        if (ways := int(jnp.max(cut(episode.support)[1])) + 1) < WAYS
    )
    for head in (metajax.prototypes(), metajax.matching(), metajax.ridge()):
        logits = []
        for count, support in ((WAYS, episode.support), (ways, cut(episode.support))):
            adapt = metajax.closed_form(features, head, ways=count)
            adapted, _ = adapt.apply(metajax.MetaParams(PARAMS, head.init()), support, KEY)
            apply = metajax.head_on(features, head)
            logits.append(jax.nn.log_softmax(apply(adapted, cut(episode.query)[0])))
        assert_close(logits[0][:, :ways], logits[1], rtol=1e-4)
        assert np.isneginf(logits[0][:, ways:]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_ways": 5}, "min_ways=5 exceeds the 4 ways"),
        ({"min_shots": 4}, "min_shots=4 exceeds the 3 shots"),
        ({"min_shots": 0}, "min_shots must be a positive integer"),
    ],
)
def test_more_than_the_full_task_has_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Varied(FULL, **changes)


def test_streamed_tasks_are_checked_and_varied():
    streamed = few_shot_tasks(IMAGES, ways=WAYS, shots=SHOTS, queries=QUERIES, device_bytes=0)
    with pytest.raises(ValueError, match="min_ways=5 exceeds the 4 ways"):
        Varied(streamed, min_ways=5)
    masks = [Varied(streamed).sample(rng).support["mask"] for rng in jax.random.split(KEY, 8)]
    assert len({int(mask.sum()) for mask in masks}) > 1


def test_other_tasks_are_refused():
    for tasks in (lambda rng: 1, metajax.tasks.Sinusoid()):
        with pytest.raises(ValueError, match="must be a FewShot, got"):
            Varied(tasks)
