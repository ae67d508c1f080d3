"""Heads in closed form, against their papers' equations in NumPy and against solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

import metajax
from tests.helpers import assert_close

KEY = jax.random.key(0)
WAYS, SHOTS, QUERIES = 3, 4, 5
BODY = jax.random.normal(KEY, (2, 6))
HEADS = {
    "prototypes": metajax.prototypes(),
    "matching": metajax.matching(),
    "ridge": metajax.ridge(),
    "svm": metajax.svm(),
}


def embed(params, x):
    return jnp.tanh(x @ params)


def task(rng):
    mean_rng, noise_rng = jax.random.split(rng)
    labels = jnp.tile(jnp.arange(WAYS), SHOTS + QUERIES)
    x = 2 * jax.random.normal(mean_rng, (WAYS, 2))[labels]
    x += 0.5 * jax.random.normal(noise_rng, x.shape)
    shots = WAYS * SHOTS
    return metajax.Episode((x[:shots], labels[:shots]), (x[shots:], labels[shots:]))


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def by_hand(name, support, x, hyper):
    """Log-probabilities by the equations."""
    (sx, labels), features = support, np.tanh(x @ np.asarray(BODY))
    sf = np.tanh(np.asarray(sx) @ np.asarray(BODY))
    if name == "prototypes":
        means = np.stack([sf[labels == k].mean(0) for k in range(WAYS)])
        return log_softmax(-((features[:, None] - means) ** 2).sum(-1))
    if name == "matching":
        lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(sf, axis=1)
        attention = np.exp(log_softmax(features @ sf.T / lengths))
        return np.log(attention @ np.eye(WAYS)[labels])
    if name == "svm":
        return log_softmax(2.5 * features @ sf.T @ dual_of_a_machine(sf, np.eye(WAYS)[labels]))
    # The normal equations, not the form with an inverse of the size of the support.
    gram = sf.T @ sf + np.exp(hyper["log_penalty"]) * np.eye(sf.shape[1])
    w = np.linalg.inv(gram) @ sf.T @ np.eye(WAYS)[labels]
    return log_softmax(hyper["scale"] * features @ w + hyper["bias"])


def dual_of_a_machine(features, one_hot, penalty=0.1):
    """The quadratic program of Crammer and Singer by a general solver."""
    kernel = features @ features.T + np.eye(len(features))

    def objective(flat):
        alpha = flat.reshape(one_hot.shape)
        return 0.5 * np.sum(alpha * (kernel @ alpha)) - np.sum(alpha * one_hot)

    found = minimize(
        objective,
        np.zeros(one_hot.size),
        jac=lambda flat: (kernel @ flat.reshape(one_hot.shape) - one_hot).ravel(),
        method="SLSQP",
        bounds=[(None, penalty * y) for y in one_hot.ravel()],
        constraints={
            "type": "eq",
            "fun": lambda flat: flat.reshape(one_hot.shape).sum(axis=1),
            "jac": lambda flat: np.kron(np.eye(len(one_hot)), np.ones((1, one_hot.shape[1]))),
        },
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x.reshape(one_hot.shape)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("few", [True, False])
def test_a_head_is_its_paper_s_equation(name, few):
    episode = task(KEY)
    kept = 5 if few else WAYS * SHOTS  # fewer examples than features, and more
    support = jax.tree.map(lambda a: np.asarray(a[:kept]), episode.support)
    hyper = {"log_penalty": jnp.asarray(-0.7), "scale": jnp.asarray(2.5), "bias": jnp.asarray(0.3)}
    inner = {"ridge": hyper, "svm": hyper["scale"]}.get(name, ())
    adapt = metajax.closed_form(embed, HEADS[name], ways=WAYS)
    adapted, info = adapt.apply(metajax.MetaParams(BODY, inner), support, KEY)
    logits = metajax.head_on(embed, HEADS[name])(adapted, episode.query[0])
    expected = by_hand(name, support, np.asarray(episode.query[0]), hyper)
    assert_close(jax.nn.log_softmax(logits), expected, rtol=1e-3, atol=1e-4)
    assert info.loss.shape == (0,)


@pytest.mark.parametrize("name", HEADS)
def test_padding_does_not_change_a_head(name):
    episode = task(KEY)
    x, labels = (a[:7] for a in episode.support)
    mask = jnp.arange(10) < 7
    padded = (
        jnp.concatenate([x, 100 + x[:3]]),
        jnp.concatenate([labels, labels[:3]]),
        mask,
    )
    adapt = metajax.closed_form(embed, HEADS[name], ways=WAYS)
    apply = metajax.head_on(embed, HEADS[name])
    meta_params = metajax.MetaParams(BODY, HEADS[name].init())

    def value(body, support):
        adapted, _ = adapt.apply(meta_params._replace(params=body), support, KEY)
        return jax.nn.log_softmax(apply(adapted, episode.query[0]))[:, 0].sum()

    found, expected = (
        jax.value_and_grad(value)(BODY, support) for support in (padded, (x, labels))
    )
    assert_close(found, expected, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_the_meta_gradient_crosses_the_head(name):
    with jax.enable_x64(True):
        episode = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a), jnp.float64 if a.dtype == jnp.float32 else None),
            task(KEY),
        )
        body = jnp.asarray(np.asarray(BODY), jnp.float64)
        adapt = metajax.closed_form(embed, HEADS[name], ways=WAYS)
        objective = metajax.query_loss(metajax.cross_entropy(metajax.head_on(embed, HEADS[name])))
        inner, _ = adapt.init(body)

        @jax.jit
        def value(body):
            return objective(adapt, metajax.MetaParams(body, inner), episode, KEY)[0]

        direction = jnp.asarray(np.random.default_rng(0).normal(size=body.shape))
        h = 1e-5
        numeric = (value(body + h * direction) - value(body - h * direction)) / (2 * h)
        assert_close(jnp.sum(jax.grad(value)(body) * direction), numeric, rtol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_features_are_learned_and_judged_with_other_ways(name):
    episodes = metajax.tasks.meta_batch(task, 6, KEY)
    learner = metajax.head_learner(embed, HEADS[name], optax.adam(0.03), ways=WAYS + 2)
    state = learner.init(BODY)
    update = jax.jit(learner.update)
    losses = []
    for _ in range(15):
        state, metrics = update(state, episodes, KEY)
        losses.append(float(metrics["query_loss"]))
    assert losses[-1] < 0.98 * losses[0]
    if name == "ridge":
        start = HEADS[name].init()
        assert all(state.meta_params.inner[key] != start[key] for key in ("log_penalty", "scale"))
    adapt = metajax.closed_form(embed, HEADS[name], ways=WAYS)
    metric = metajax.accuracy(metajax.head_on(embed, HEADS[name]))
    scores = jax.jit(lambda s: metajax.evaluate(adapt, metric, s, episodes, KEY))(state)
    assert scores["mean"].shape == (1,)
    assert scores["mean"][0] > 0.8


def test_gradient_steps_may_follow():
    loss = metajax.cross_entropy(metajax.head_on(embed, metajax.prototypes()))
    closed = metajax.closed_form(embed, metajax.prototypes(), ways=WAYS)

    def fitted(meta_params, support, rng):
        return closed.apply(meta_params, support, rng)[0]

    adapt = metajax.start_from(fitted, metajax.inner_loop(loss, optax.sgd(0.1), 2))
    support = task(KEY).support
    adapted, info = adapt.apply(metajax.MetaParams(BODY), support, KEY)
    expected = fitted(metajax.MetaParams(BODY), support, KEY)
    for _ in range(2):
        gradient = jax.grad(lambda p: loss(p, support, KEY)[0])(expected)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, gradient)
    assert_close(adapted, expected, rtol=1e-4)
    assert info.loss[1] < info.loss[0]


def test_what_is_no_head_or_no_batch_is_refused():
    with pytest.raises(ValueError, match="head must be of type Head"):
        metajax.closed_form(embed, metajax.ridge, ways=3)
    with pytest.raises(ValueError, match="ways must be a positive integer"):
        metajax.closed_form(embed, metajax.ridge(), ways=0)
    with pytest.raises(ValueError, match=r"embed must be a function \(params, x\)"):
        metajax.head_learner(lambda x: x, metajax.ridge(), optax.sgd(0.1), ways=3)
    with pytest.raises(ValueError, match="start must be a function"):
        metajax.start_from(
            lambda params: params, metajax.closed_form(embed, metajax.ridge(), ways=3)
        )
