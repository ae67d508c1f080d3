"""Every algorithm on quadratics, where the meta-gradient is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")

RATE, STEPS, SIZE = 0.1, 4, 3
RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(SIZE, SIZE))
HESSIAN = FACTOR @ FACTOR.T / SIZE + np.eye(SIZE) * 0.3
THETA, SUPPORT, QUERY = RNG.normal(size=(3, SIZE))
EPISODE = metajax.Episode(SUPPORT, QUERY)


def bowl(params, target, rng):
    """1/2 |params - target|^2."""
    return 0.5 * jnp.sum((params - target) ** 2), {}


def ellipsoid(params, target, rng):
    """1/2 (params - target)' H (params - target)."""
    error = params - target
    return 0.5 * error @ jnp.asarray(HESSIAN) @ error, {}


def adapted(hessian=np.eye(SIZE)):  # noqa: B008
    phi = THETA
    for _ in range(STEPS):
        phi = phi - RATE * hessian @ (phi - SUPPORT)
    return phi


def gradient(loss=bowl, objective=metajax.query_loss, steps=STEPS, optimizer=None, **kwargs):
    adapt = metajax.inner_loop(loss, optimizer or optax.sgd(RATE), steps, **kwargs)
    return meta_gradient(adapt, objective(loss), jnp.asarray(THETA), EPISODE)


def test_maml():
    expected = (1 - RATE) ** STEPS * (adapted() - QUERY)
    assert_close(gradient().params, expected, rtol=1e-12)


def test_maml_with_a_full_hessian():
    jacobian = np.linalg.matrix_power(np.eye(SIZE) - RATE * HESSIAN, STEPS)
    expected = jacobian @ HESSIAN @ (adapted(HESSIAN) - QUERY)
    assert_close(gradient(ellipsoid).params, expected, rtol=1e-12)


def test_fomaml():
    found = gradient(ellipsoid, meta_gradient=metajax.first_order())
    assert_close(found.params, HESSIAN @ (adapted(HESSIAN) - QUERY), rtol=1e-12)


def test_reptile():
    found = gradient(
        objective=lambda loss: metajax.displacement(), meta_gradient=metajax.first_order()
    )
    assert_close(found.params, THETA - adapted(), rtol=1e-12)


def test_reptile_with_sgd_is_the_averaged_parameter_delta():
    epsilon, supports = 0.3, RNG.normal(size=(5, SIZE))
    learner = metajax.reptile(bowl, optax.sgd(RATE), optax.sgd(epsilon), num_steps=STEPS)
    state = learner.init(jnp.asarray(THETA))
    episodes = metajax.Episode(jnp.asarray(supports), ())
    phi = [learner.adapt(state, s, jax.random.key(0)) for s in supports]
    updated, _ = learner.update(state, episodes, jax.random.key(0))
    expected = THETA + epsilon * np.mean([p - THETA for p in phi], axis=0)
    assert_close(updated.meta_params.params, expected, rtol=1e-12)


@pytest.mark.parametrize("outer", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9), optax.lion(0.1)])
def test_any_outer_optimizer_takes_the_displacement_as_a_gradient(outer):
    learner = metajax.reptile(bowl, optax.sgd(RATE), outer, num_steps=STEPS)
    state = learner.init(jnp.asarray(THETA))
    updated, _ = learner.update(
        state, metajax.Episode(SUPPORT[None], QUERY[None]), jax.random.key(0)
    )
    delta = metajax.MetaParams(jnp.asarray(THETA - adapted()))
    updates, _ = outer.update(delta, outer.init(state.meta_params), state.meta_params)
    expected = optax.apply_updates(state.meta_params, updates)
    assert_close(updated.meta_params.params, expected.params, rtol=1e-12)


def test_meta_sgd_learns_the_initialization_and_the_step_sizes():
    found = gradient(bowl, optimizer=metajax.learned_step_sizes(RATE))
    # phi_T - s = (1 - a)^T (theta - s), elementwise in the step size a.
    shrink = (1 - RATE) ** (STEPS - 1)
    by_rate = (adapted() - QUERY) * -STEPS * shrink * (THETA - SUPPORT)
    assert_close(found.params, (1 - RATE) ** STEPS * (adapted() - QUERY), rtol=1e-12)
    assert_close(found.inner, by_rate, rtol=1e-12)


def test_first_order_still_learns_the_step_size_of_the_update():
    found = gradient(
        bowl,
        steps=1,
        optimizer=metajax.learned_step_sizes(RATE),
        meta_gradient=metajax.first_order(),
    )
    phi = THETA - RATE * (THETA - SUPPORT)
    assert_close(found.inner, (phi - QUERY) * -(THETA - SUPPORT), rtol=1e-12)


@pytest.mark.parametrize("algorithm", [metajax.anil, metajax.boil])
def test_anil_and_boil_adapt_their_block_only(algorithm):
    def loss(params, target, rng):
        return ellipsoid(jnp.concatenate([params["body"], params["head"]]), target, rng)

    params = {"body": jnp.asarray(THETA[:2]), "head": jnp.asarray(THETA[2:])}
    learner = algorithm(
        loss,
        optax.sgd(RATE),
        optax.sgd(1.0),
        num_steps=STEPS,
        head=lambda path: "head" in jax.tree_util.keystr(path),
    )
    state = learner.init(params)
    episodes = metajax.Episode(SUPPORT[None], QUERY[None])
    updated, _ = learner.update(state, episodes, jax.random.key(0))
    # Gradient descent in the chosen rows only: phi <- phi - a M H (phi - s), M their mask.
    mask = np.diag([0.0, 0, 1] if algorithm is metajax.anil else [1.0, 1, 0])
    phi, jacobian = THETA, np.eye(SIZE)
    for _ in range(STEPS):
        phi = phi - RATE * mask @ HESSIAN @ (phi - SUPPORT)
        jacobian = (np.eye(SIZE) - RATE * mask @ HESSIAN) @ jacobian
    expected = THETA - jacobian.T @ HESSIAN @ (phi - QUERY)
    found = updated.meta_params.params
    assert_close(jnp.concatenate([found["body"], found["head"]]), expected, rtol=1e-12)
    frozen = "body" if algorithm is metajax.anil else "head"
    assert_close(learner.adapt(state, SUPPORT, jax.random.key(0))[frozen], params[frozen], rtol=0)


def test_imaml_tends_to_its_closed_form_as_steps_grow():
    strength = 2.0
    minimizer = np.linalg.solve(
        HESSIAN + strength * np.eye(SIZE), HESSIAN @ SUPPORT + strength * THETA
    )
    expected = np.linalg.solve(np.eye(SIZE) + HESSIAN / strength, HESSIAN @ (minimizer - QUERY))
    errors = []
    for steps in (1, 4, 16, 64):
        found = gradient(
            ellipsoid,
            steps=steps,
            proximal=strength,
            meta_gradient=metajax.implicit(cg_steps=SIZE),
        )
        errors.append(np.abs(np.asarray(found.params) - expected).max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_explicit_gradients_of_the_proximal_problem_tend_to_the_implicit_ones():
    settings = {"loss": ellipsoid, "steps": 200, "proximal": 2.0}
    explicit = gradient(**settings)
    implicit = gradient(**settings, meta_gradient=metajax.implicit(cg_steps=SIZE))
    assert_close(implicit.params, explicit.params, rtol=1e-8)


def test_one_conjugate_gradient_step_is_not_yet_the_inverse():
    settings = {"loss": ellipsoid, "steps": 64, "proximal": 2.0}
    one, all_ = (
        gradient(**settings, meta_gradient=metajax.implicit(cg_steps=k)).params for k in (1, SIZE)
    )
    assert np.abs(np.asarray(one - all_)).max() > 1e-3


def test_multi_step_query_loss():
    weights = [0.1, 0.2, 0.3, 0.4]
    found = gradient(objective=lambda loss: metajax.multi_step_query_loss(loss, weights)).params
    phi, expected = THETA, np.zeros(SIZE)
    for step, weight in enumerate(weights, start=1):
        phi = phi - RATE * (phi - SUPPORT)
        expected = expected + weight * (1 - RATE) ** step * (phi - QUERY)
    assert_close(found, expected, rtol=1e-12)


def test_zero_inner_steps_are_joint_training():
    assert_close(gradient(steps=0).params, THETA - QUERY, rtol=1e-12)


def test_the_proximal_term_pulls_to_the_initialization():
    adapt = metajax.inner_loop(bowl, optax.sgd(RATE), 2, proximal=3.0)
    found, info = adapt.apply(metajax.MetaParams(THETA), SUPPORT, jax.random.key(0))
    first = THETA - RATE * (THETA - SUPPORT)
    second = first - RATE * ((first - SUPPORT) + 3.0 * (first - THETA))
    assert_close(found, second, rtol=1e-12)
    # The reported loss is the task's own.
    assert_close(info.loss[1], 0.5 * np.sum((first - SUPPORT) ** 2), rtol=1e-12)


def last(num_steps, **kwargs):
    return metajax.inner_loop(
        ellipsoid, optax.sgd(RATE), num_steps, meta_gradient=metajax.first_order(), **kwargs
    )


def test_last_update_of_a_shared_tail():
    before = THETA
    for _ in range(STEPS - 1):
        before = before - RATE * HESSIAN @ (before - SUPPORT)
    found = meta_gradient(last(STEPS), metajax.last_update(), jnp.asarray(THETA), EPISODE)
    assert_close(found.params, RATE * HESSIAN @ (before - SUPPORT), rtol=1e-12)


@pytest.mark.parametrize("steps", [0, STEPS])
def test_last_update_of_a_separate_tail_is_fomaml(steps):
    objective = metajax.last_update(tail=last(1))
    found = meta_gradient(last(steps), objective, jnp.asarray(THETA), EPISODE)
    fomaml = gradient(ellipsoid, steps=steps, meta_gradient=metajax.first_order())
    assert_close(found.params, RATE * fomaml.params, rtol=1e-12)


def test_last_update_hands_the_optimizer_to_its_tail():
    """The gradients grow, so that Adam's last step depends on those before it."""
    adam = optax.adam(0.1, b1=0.0)

    def steps(num, support):
        adapt = metajax.inner_loop(
            bowl, adam, num, meta_gradient=metajax.first_order(), carry="mean",
            batches=metajax.per_step(),
        )  # fmt: skip
        return adapt, jnp.asarray(support)

    far = np.stack([SUPPORT, 10 * SUPPORT, 100 * SUPPORT])
    adapt, support = steps(3, far)
    _, state = adapt.init(jnp.asarray(THETA))
    whole = metajax.Episode(support, jnp.asarray(QUERY))
    shared = meta_gradient(
        adapt, metajax.last_update(), jnp.asarray(THETA), whole, inner_state=state
    )
    adapt, support = steps(2, far[:2])
    tail, query = steps(1, far[2:])
    separate, (_, ended) = metajax.last_update(tail=tail)(
        adapt, metajax.MetaParams(jnp.asarray(THETA)), metajax.Episode(support, query),
        jax.random.key(0), inner_state=state,
    )  # fmt: skip
    found = meta_gradient(
        adapt, metajax.last_update(tail=tail), jnp.asarray(THETA),
        metajax.Episode(support, query), inner_state=state,
    )  # fmt: skip
    assert_close(found.params, shared.params, rtol=1e-12)
    assert_close(separate, 0.5 * jnp.sum(shared.params**2), rtol=1e-12)
    assert int(ended[0].count) == 3


def test_last_update_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="without steps has no last update"):
        meta_gradient(last(0), metajax.last_update(), jnp.asarray(THETA), EPISODE)
    with pytest.raises(ValueError, match="carry='mean'"):
        meta_gradient(
            last(1), metajax.last_update(tail=last(1, carry="mean")), jnp.asarray(THETA), EPISODE
        )


def test_step_sizes_per_array_and_step():
    sizes = jnp.asarray([0.1, 0.3, 0.2])
    adapt = metajax.inner_loop(ellipsoid, metajax.learned_per_step_sizes(0.5, 3), 5)
    assert adapt.init(jnp.asarray(THETA))[0].tolist() == [0.5] * 3
    phi = THETA
    for size in (0.1, 0.3, 0.2, 0.2, 0.2):  # the last size again
        phi = phi - size * HESSIAN @ (phi - SUPPORT)
    found, _ = adapt.apply(
        metajax.MetaParams(jnp.asarray(THETA), sizes), jnp.asarray(SUPPORT), jax.random.key(0)
    )
    assert_close(found, phi, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(RATE), metajax.learned_per_step_sizes(RATE, STEPS)]
)
def test_a_parameter_that_counts_the_steps(optimizer):
    """The targets of the steps differ, and those after the last step have one of their own."""
    targets = jnp.asarray(RNG.normal(size=(STEPS + 1, SIZE)))

    def loss(params, batch, rng):
        at = targets[params["step"].astype(int)]
        return 0.5 * jnp.sum((params["w"] - at - 0 * batch) ** 2), {}

    optimizer = metajax.count_steps(optimizer, lambda path: "step" in jax.tree_util.keystr(path))
    adapt = metajax.inner_loop(loss, optimizer, STEPS)
    params = {"w": jnp.asarray(THETA), "step": jnp.zeros(())}
    inner, _ = adapt.init(params)
    phi = THETA
    for target in np.asarray(targets[:-1]):
        phi = phi - RATE * (phi - target)
    adapted, _ = adapt.apply(metajax.MetaParams(params, inner), SUPPORT, jax.random.key(0))
    assert_close(adapted["w"], phi, rtol=1e-12)
    assert float(adapted["step"]) == STEPS
    found = meta_gradient(adapt, metajax.query_loss(loss), params, EPISODE).params
    assert_close(found["w"], (1 - RATE) ** STEPS * (phi - np.asarray(targets[-1])), rtol=1e-12)
    assert float(found["step"]) == 0


@pytest.mark.parametrize(("step", "progress"), [(0, 0.0), (5, 0.5), (10, 1.0)])
def test_maml_plus_plus_anneals_its_weights(step, progress):
    """The first 10 updates are first order; from then on it is MAML."""
    inner = metajax.learned_per_step_sizes(RATE, STEPS)
    learner = metajax.maml_plus_plus(
        ellipsoid, inner, optax.sgd(1.0), num_steps=STEPS,
        annealed_updates=10, first_order_updates=10,
    )  # fmt: skip
    state = learner.init(jnp.asarray(THETA))._replace(step=jnp.asarray(step, jnp.int32))
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], EPISODE)
    after, _ = jax.jit(learner.update)(state, batch, jax.random.key(0))
    weights = [(1 - progress) / STEPS] * (STEPS - 1) + [(1 - progress) / STEPS + progress]
    engine = metajax.first_order() if step < 10 else metajax.second_order()
    expected = gradient(
        ellipsoid, lambda loss: metajax.multi_step_query_loss(loss, weights),
        optimizer=inner, meta_gradient=engine,
    )  # fmt: skip
    found = jax.tree.map(lambda a, b: a - b, state.meta_params, after.meta_params)
    assert_close(found, expected, rtol=1e-9)
    assert int(after.step) == step + 1


def test_weighted_updates():
    path = [THETA]
    for _ in range(STEPS):
        path.append(path[-1] - RATE * HESSIAN @ (path[-1] - SUPPORT))
    weights = (0.5, 0.0, -1.0, 2.0)
    expected = sum(w * (a - b) for w, a, b in zip(weights, path[:-1], path[1:], strict=True))
    objective = metajax.weighted_updates(weights)
    found = meta_gradient(last(STEPS), objective, jnp.asarray(THETA), EPISODE)
    assert_close(found.params, expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"need as many weights.* got the shape \(4,\)"):
        meta_gradient(last(2), objective, jnp.asarray(THETA), EPISODE)


@pytest.mark.parametrize(
    ("optimizer", "carry", "last"),
    [
        (optax.adam(0.1, b1=0.0), None, 0.0890),
        (optax.adam(0.1, b1=0.0), "mean", 0.0890),
        (optax.sgd(lambda count: 0.1 * 2.0**count), None, 0.288),
    ],
)
def test_a_separate_tail_continues_from_the_optimizers_state(optimizer, carry, last):
    """On a query that is the support it is the shared tail."""

    def half(params, batch, rng):
        return jnp.mean((params - batch) ** 2) / 2, {}

    batch = jnp.ones((2, 1))
    for tail in ("shared", "separate"):
        learner = metajax.fomaml(
            half, optimizer, optax.sgd(1.0), num_steps=3, tail=tail, carry=carry
        )
        state, _ = learner.update(
            learner.init(jnp.zeros(())), metajax.Episode(batch, batch), jax.random.key(0)
        )
        assert_close(state.meta_params.params, jnp.asarray(last), rtol=1e-2)
