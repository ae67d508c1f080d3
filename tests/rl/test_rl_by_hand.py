"""Outer steps on a policy of one number, where every value has a closed form, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl

pytestmark = pytest.mark.usefixtures("float64")
RATE = 0.5
# Actions and advantages of two tasks, the same before and after adaptation.
ACTIONS = np.array([[0.3, 1.5, -0.8, 0.5], [2.0, -1.0, 1.7, -1.2]])
ADVANTAGES = np.array([[0.9, 1.1, -0.7, -1.3], [1.4, 0.6, -0.5, -0.9]])


def policy(params, observations):
    """N(params x observation, 1)."""
    mean = params * observations
    return rl.Normal(mean, jnp.zeros_like(mean))


def sample(params, task, rng):
    """Trajectories of one step: the task says what is seen, done and how good it was."""
    observations, actions, advantages = task
    count = len(actions)
    observations = observations[:, None, None]
    return rl.Trajectories(
        observations,
        actions[:, None, None],
        jnp.zeros((count, 1)),
        jnp.ones((count, 1)),
        policy(params, observations),
        advantages[:, None],
        jnp.zeros(count),
    )


def sampled_before(params, task, rng):
    """As `sample`, by a policy that has no part in the learner: what is sampled is a constant."""
    return sample(jnp.asarray(0.15), task, rng)


def adapting(
    num_steps=1, rate=RATE, sample=sample, surrogate=rl.log_likelihood, meta_gradient=None
):
    return rl.inner_loop(
        policy,
        sample,
        optax.sgd(rate),
        num_steps,
        surrogate=surrogate,
        meta_gradient=meta_gradient,
    )


def run(learner, start, actions, advantages, observations=None):
    actions, advantages = jnp.asarray(actions), jnp.asarray(advantages)
    observations = jnp.ones_like(actions) if observations is None else jnp.asarray(observations)
    episodes = metajax.Episode((observations, actions, advantages), ())
    state = learner.init(jnp.asarray(start))
    return jax.jit(learner.update)(state, episodes, jax.random.key(0))


def adapt(theta, actions, advantages, observations=1.0):
    """The adapted number and its derivative: the log-likelihood is -(a - theta o)^2 / 2."""
    away = actions - theta * observations
    adapted = theta + RATE * np.mean(advantages * away * observations, axis=-1)
    return adapted, 1 - RATE * np.mean(advantages * observations**2, axis=-1)


@pytest.mark.parametrize("kl_penalty", [0.0, 0.7])
def test_the_promp_steps_are_those_by_hand(kl_penalty):
    clip, rate, epochs, old = 0.2, 0.4, 4, 0.1
    first, _ = adapt(old, ACTIONS, ADVANTAGES)

    def ratios(theta):
        adapted, slope = adapt(theta, ACTIONS, ADVANTAGES)
        away = ACTIONS - adapted[:, None]
        return np.exp((ACTIONS - first[:, None]) ** 2 / 2 - away**2 / 2), away, slope, adapted

    def objective(theta):
        ratio = ratios(theta)[0]
        clipped = np.where(ratio > 1 + clip, 1 + clip, np.where(ratio < 1 - clip, 1 - clip, ratio))
        gain = np.minimum(ratio * ADVANTAGES, clipped * ADVANTAGES)
        return kl_penalty * (theta - old) ** 2 / 2 - gain.mean()

    theta, seen, norms = old, set(), []
    for _ in range(epochs):
        ratio, away, slope, _ = ratios(theta)
        # A ratio that has gone far enough for its advantage pushes no further; back it does.
        counts = np.where(ADVANTAGES > 0, ratio <= 1 + clip, ratio >= 1 - clip)
        up, over, under = ADVANTAGES > 0, ratio > 1 + clip, ratio < 1 - clip
        seen |= {tuple(case) for case in np.stack([up, over, under], axis=-1).reshape(-1, 3)}
        pull = -np.mean(counts * ratio * ADVANTAGES * away, axis=1) * slope
        gradient = pull.mean() + kl_penalty * (theta - old)
        norms.append(abs(gradient))
        theta = theta - rate * gradient
    for positive in (True, False):
        assert {(positive, True, False), (positive, False, True)} <= seen

    learner = rl.promp(
        adapting(), optax.sgd(rate), num_epochs=epochs, clip=clip, kl_penalty=kl_penalty
    )
    after, metrics = run(learner, old, ACTIONS, ADVANTAGES)
    assert float(after.meta_params.params) == pytest.approx(theta, rel=1e-12)
    ratio, _, _, adapted = ratios(theta)
    expected = {
        "objective": objective(old),
        "improvement": objective(old) - objective(theta),
        "meta_gradient_norm": norms[0],
        "kl": np.mean((adapted - first) ** 2 / 2),
        "clipped": np.mean(np.abs(ratio - 1) > clip),
    }
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-10), name


@pytest.mark.parametrize("tries", [8, 7])
def test_the_line_search_refuses_steps_that_raise_the_loss(tries):
    """One action, 0.1, of advantage 1: the loss falls from 0 to 0.1 and is as high again at 0.2."""
    max_kl, damping = 0.5, 0.25
    learner = rl.maml_trpo(
        adapting(num_steps=0), max_kl=max_kl, damping=damping, max_backtracks=tries
    )
    after, metrics = run(learner, 0.0, [[0.1]], [[1.0]])
    assert int(metrics["line_search_steps"]) == tries
    # The curvature is 1; the KL, half the step's square, would allow the first try.
    step = np.sqrt(2 * max_kl / (1 + damping)) * 0.8 ** np.arange(tries)
    assert step[0] ** 2 / 2 < max_kl
    accepted = step[-1] < 0.2
    assert [float(metrics["accepted"]), accepted] == [float(tries == 8)] * 2
    moved = step[-1] if accepted else 0.0
    assert float(after.meta_params.params) == pytest.approx(moved, rel=1e-12)
    assert float(metrics["kl"]) == pytest.approx(moved**2 / 2, rel=1e-12)
    improvement = np.exp(0.1**2 / 2 - (0.1 - moved) ** 2 / 2) - 1
    assert float(metrics["objective"]) == pytest.approx(-1.0, rel=1e-12)
    assert float(metrics["improvement"]) == pytest.approx(improvement, rel=1e-9)
    assert float(after.opt_state) == 1.0


def test_an_infinite_gain_is_not_taken():
    """An action far away that pays: its ratio overflows long before the divergence is large."""
    max_kl, far, largest = 0.5, 1e5, np.log(np.finfo(np.float64).max)
    learner = rl.maml_trpo(adapting(num_steps=0), max_kl=max_kl, damping=0.25, max_backtracks=30)
    after, metrics = run(learner, 0.0, [[far]], [[1.0]])
    steps = np.sqrt(2 * max_kl / 1.25) * 0.8 ** np.arange(30)
    tries = np.argmax(far * steps - steps**2 / 2 < largest)
    assert tries > 10
    assert int(metrics["line_search_steps"]) == tries + 1
    assert float(after.meta_params.params) == pytest.approx(steps[tries], rel=1e-12)


@pytest.mark.parametrize(
    ("slope", "backtrack", "tries"), [(0.5, 0.8, 1), (1.1, 0.8, 2), (1.5, 0.8, 2), (2.0, 0.3, 2)]
)
def test_the_line_search_goes_back_to_where_the_divergence_allows(slope, backtrack, tries):
    """First order takes the slope of adaptation for 1; the divergence grows with its square."""
    max_kl, damping = 0.02, 0.01
    # One action, 1; its advantage decides the slope.
    advantage = (1 - slope) / RATE
    learner = rl.maml_trpo(
        adapting(meta_gradient=metajax.first_order()),
        max_kl=lambda step: max_kl / (1 + step),
        damping=damping,
        backtrack=backtrack,
    )
    after, metrics = run(learner, 0.0, [[1.0]], [[advantage]])
    scale, divergence = 1.0, slope**2 * max_kl / (1 + damping)
    if tries == 2:
        assert divergence > max_kl
        scale = np.clip(np.sqrt(0.9 * max_kl / divergence), min(0.5, backtrack), backtrack)
    kl = scale**2 * divergence
    assert kl < max_kl
    assert int(metrics["line_search_steps"]) == tries
    assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-10)
    # Towards the action where its advantage is positive, away from it where it is not.
    step = np.sign(advantage) * scale * np.sqrt(2 * max_kl / (1 + damping))
    assert float(after.meta_params.params) == pytest.approx(step, rel=1e-10)
    next_scale = min(1.0, scale * np.sqrt(0.9 * max_kl / kl))
    assert float(after.opt_state) == pytest.approx(next_scale, rel=1e-10)


def test_the_curvature_is_that_of_every_so_many_th_trajectory():
    max_kl, damping, theta = 1e-3, 0.3, 0.2
    observations = np.array([0.5, -2.0, 1.5, 0.3])
    actions, advantages = ACTIONS[0], ADVANTAGES[0]
    adapted, slope = adapt(theta, actions, advantages, observations)
    gradient = -np.mean(advantages * (actions - adapted * observations) * observations) * slope
    _, some = adapt(theta, actions[::2], advantages[::2], observations[::2])
    assert abs(some - slope) > 0.2
    curvature = some**2 * np.mean(observations[::2] ** 2) + damping
    step = -np.sign(gradient) * np.sqrt(2 * max_kl / curvature)
    learner = rl.maml_trpo(adapting(), max_kl=max_kl, damping=damping, curvature_stride=2)
    after, metrics = run(learner, theta, actions[None], advantages[None], observations[None])
    assert int(metrics["line_search_steps"]) == 1
    assert float(metrics["accepted"]) == 1
    assert float(after.meta_params.params) == pytest.approx(theta + step, rel=1e-10)
    # The constraint is on all of them.
    kl = np.mean((slope * step * observations) ** 2 / 2)
    assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-10)


def test_the_reptile_step_is_that_by_hand():
    rate, old = 0.4, 0.1
    away = np.mean(old - adapt(old, ACTIONS, ADVANTAGES)[0])
    learner = rl.reptile(adapting(), optax.sgd(rate))
    after, metrics = run(learner, old, ACTIONS, ADVANTAGES)
    assert float(after.meta_params.params) == pytest.approx(old - rate * away, rel=1e-12)
    assert int(after.step) == 1
    assert float(metrics["meta_gradient_norm"]) == pytest.approx(abs(away), rel=1e-12)
    assert float(metrics["objective"]) == pytest.approx(away**2 / 2, rel=1e-12)


@pytest.mark.parametrize("every_step", [False, True])
def test_the_loss_and_the_divergence_are_those_by_hand(every_step):
    """A policy of two numbers, mean and log of the deviation, after two adaptation steps."""

    def policy(params, observations):
        ones = jnp.ones((*observations.shape[:-1], 1))
        return rl.Normal(params[0] * ones, params[1] * ones)

    actions, advantages = ACTIONS[0], ADVANTAGES[0]
    masks = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]])

    def adapted(params):
        """The parameters before and after each step."""
        policies = [np.asarray(params)]
        for mask in masks[:2]:
            mean, log_std = policies[-1]
            z = (actions - mean) / np.exp(log_std)
            weights = mask * advantages / mask.sum()
            gradient = np.array([weights @ z / np.exp(log_std), weights @ (z**2 - 1)])
            policies.append(policies[-1] + RATE * gradient)
        return policies

    old, new = np.array([0.1, -0.2]), np.array([0.2, 0.1])
    losses, kls = [], []
    for k, ((mean, log_std), (new_mean, new_log_std)) in enumerate(
        zip(adapted(old), adapted(new), strict=True)
    ):
        a, b = (actions - mean) / np.exp(log_std), (actions - new_mean) / np.exp(new_log_std)
        ratio = np.exp(a**2 / 2 + log_std - b**2 / 2 - new_log_std)
        losses.append(-np.sum(masks[k] * ratio * advantages) / masks[k].sum())
        ratio_of_variances = np.exp(2 * (log_std - new_log_std))
        square = ((mean - new_mean) / np.exp(new_log_std)) ** 2
        kls.append((ratio_of_variances + square - 1) / 2 + new_log_std - log_std)

    def trajectories(k):
        # What does not count may be anything.
        done = np.where(masks[k], actions, 1e200)
        found = sample(jnp.zeros(()), (jnp.ones(4), done, advantages), None)
        distribution = policy(adapted(old)[k], found.observations)
        return found._replace(mask=jnp.asarray(masks[k])[:, None], distribution=distribution)

    support = jax.tree.map(lambda *x: jnp.stack(x), trajectories(0), trajectories(1))
    policies = jnp.stack([jnp.asarray(x) for x in adapted(old)])
    collected = rl.Collected(support, trajectories(2), policies)
    loop = rl.inner_loop(policy, sample, optax.sgd(RATE), 2, surrogate=rl.log_likelihood)
    loss, kl = jax.jit(
        lambda params: rl.loss_and_kl(
            loop, metajax.MetaParams(params), collected, every_step=every_step
        )
    )(jnp.asarray(new))
    first = 1 if every_step else 2
    assert float(loss) == pytest.approx(np.mean(losses[first:]), rel=1e-10)
    assert float(kl) == pytest.approx(np.mean(kls[first:]), rel=1e-10)


@pytest.mark.parametrize("surrogate", rl.SURROGATES.values())
def test_what_samples_has_no_part_in_a_surrogate_s_gradient(surrogate):
    """At the sampling policy all surrogates have one gradient, whatever the sampler is made of."""
    task = (jnp.ones(4), jnp.asarray(ACTIONS[0]), jnp.asarray(ADVANTAGES[0]))
    start = metajax.MetaParams(jnp.asarray(0.1))
    collected = rl.collect(adapting(surrogate=surrogate), start, task, jax.random.key(0))
    adapted, _ = adapt(0.1, *task[1:])
    np.testing.assert_allclose(collected.policies, [0.1, adapted], rtol=1e-12)


SWEPT = {
    "maml_trpo": (
        lambda x: rl.maml_trpo(
            adapting(rate=x[0], sample=sampled_before), max_kl=x[1], damping=x[2]
        ),
        [0.5, 0.1, 0.1],
    ),
    "promp": (
        lambda x: rl.promp(
            adapting(rate=x[0], sample=sampled_before),
            optax.sgd(x[1]),
            num_epochs=2,
            kl_penalty=x[2],
            clip=x[3],
        ),
        [0.5, 0.2, 0.7, 0.3],
    ),
    "reptile": (
        lambda x: rl.reptile(adapting(rate=x[0], sample=sampled_before), optax.sgd(x[1])),
        [0.5, 0.3],
    ),
}


@pytest.mark.parametrize("name", SWEPT)
def test_what_a_learner_is_made_of_can_be_swept_and_differentiated(name):
    build, values = SWEPT[name]

    def after(x):
        return run(build(x), 0.1, ACTIONS, ADVANTAGES)[0].meta_params.params

    x, eps = jnp.asarray(values), 1e-6
    nearby = eps * jnp.eye(len(values))
    points = jnp.concatenate([x[None], x[None] + nearby, x[None] - nearby])
    swept = jax.jit(jax.vmap(after))(points)
    assert float(swept[0]) == pytest.approx(float(after(values)), rel=1e-12)
    above, below = jnp.split(swept[1:], 2)
    differences = (above - below) / (2 * eps)
    assert jnp.count_nonzero(differences) >= 2
    modes = (jax.jacfwd,) if name == "maml_trpo" else (jax.jacfwd, jax.jacrev)
    for mode in modes:
        slopes = jax.jit(mode(after))(x)
        np.testing.assert_allclose(slopes, differences, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SWEPT)
def test_parameters_keep_their_type(name):
    build, values = SWEPT[name]
    doubles, _ = run(build(values), 0.1, ACTIONS, ADVANTAGES)
    singles, _ = run(build(np.asarray(values)), np.float32(0.1), ACTIONS, ADVANTAGES)
    assert singles.meta_params.params.dtype == jnp.float32
    np.testing.assert_allclose(singles.meta_params.params, doubles.meta_params.params, rtol=1e-5)
