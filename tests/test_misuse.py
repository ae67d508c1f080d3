"""The public functions of the core with wrong types, sizes, signs, structures: one clear line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax


def loss(params, batch, rng):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2), {}


def apply(params, x):
    return x @ params["w"]


KEY, SGD, PARAMS = jax.random.key(0), optax.sgd(0.1), {"w": jnp.ones((2, 1))}
BATCH = jnp.ones((4, 5, 2)), jnp.ones((4, 5, 1))
EPISODES = metajax.Episode(BATCH, BATCH)
ONE = jax.tree.map(lambda x: x[0], EPISODES)
LEARNER = metajax.maml(loss, SGD, SGD)
ADAPT = metajax.inner_loop(loss, SGD, 2)
STATE = LEARNER.init(PARAMS)
CARRY = metajax.reptile(loss, optax.adam(0.1), SGD, num_steps=2, carry="mean")


def update(learner=LEARNER, state=STATE, episodes=EPISODES, rng=KEY):
    return learner.update(state, episodes, rng)


def trained(*args, **kwargs):
    learner = metajax.maml(*args, **kwargs)
    return learner.update(learner.init(PARAMS), EPISODES, KEY)


def with_loss(result):
    return update(metajax.maml(lambda p, b, r: result(loss(p, b, r)[0]), SGD, SGD))


def scored(metric=None, adapt=ADAPT, state=STATE, episodes=EPISODES, rng=KEY):
    metric = metajax.mse(apply) if metric is None else metric
    return metajax.evaluate(adapt, metric, state, episodes, rng)


def weighted(objective, num_steps=2):
    adapt = metajax.inner_loop(loss, SGD, num_steps)
    return update(metajax.meta_learner(adapt, objective, SGD))


def shots(num, batch=BATCH):
    return jax.tree.map(lambda x: x[:, :num], batch)


def returning(updates):
    return optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (updates(g), s))


CASES = {
    # keys
    "an int for a key": (lambda: update(rng=0), "rng must be one key, .* got int"),
    "None for a key": (lambda: update(rng=None), "rng must be one key"),
    "floats for a key": (lambda: update(rng=jnp.ones(2)), "got float32"),
    "many keys": (lambda: update(rng=jax.random.split(KEY, 3)), "rng must be one key"),
    "adapt, key": (lambda: LEARNER.adapt(STATE, ONE.support, 0), "rng must be one key"),
    "apply, key": (lambda: ADAPT.apply(STATE.meta_params, ONE.support, 3), "one key"),
    "evaluate, key": (lambda: scored(rng=1), "rng must be one key"),
    # states
    "no state": (lambda: update(state=PARAMS), r"of type MetaState, from learner.init.*got dict"),
    "arguments swapped": (lambda: update(state=EPISODES, episodes=STATE), "of type MetaState"),
    "state of an outer Adam": (
        lambda: update(state=metajax.maml(loss, SGD, optax.adam(0.1)).init(PARAMS)),
        "opt_state .* another outer optimizer: .*ScaleByAdamState",
    ),
    "state for an outer Adam": (
        lambda: update(metajax.maml(loss, SGD, optax.adam(0.1))),
        "opt_state .* another outer optimizer",
    ),
    "carried state missing": (lambda: update(CARRY), "built with carry='mean'"),
    "carried state unasked": (lambda: update(state=CARRY.init(PARAMS)), "built with carry=None"),
    "parameters for meta-parameters": (
        lambda: ADAPT.apply(PARAMS, ONE.support, KEY),
        r"MetaParams, such as state\.meta_params; got dict",
    ),
    "state for meta-parameters": (
        lambda: ADAPT.apply(STATE, ONE.support, KEY),
        r"state\.meta_params; got MetaState",
    ),
    # episodes
    "tuple for an episode": (lambda: update(episodes=(BATCH, BATCH)), "of type Episode"),
    "support without examples": (
        lambda: update(episodes=metajax.Episode(shots(0), BATCH)),
        "the support has no examples",
    ),
    "support without examples, cycled": (
        lambda: update(
            metajax.maml(loss, SGD, SGD, batches=metajax.cycle(1)),
            episodes=metajax.Episode(shots(0), BATCH),
        ),
        "the support has no examples",
    ),
    "query without examples": (
        lambda: update(episodes=metajax.Episode(BATCH, shots(0))),
        "the query set has no examples",
    ),
    "no tasks": (lambda: update(episodes=jax.tree.map(lambda x: x[:0], EPISODES)), "at least one"),
    "text in a batch": (
        lambda: LEARNER.adapt(STATE, ("a", ONE.support[1]), KEY),
        r"support\[0\] is str",
    ),
    "episode for a support": (lambda: LEARNER.adapt(STATE, ONE, KEY), r"episode\.support"),
    "tasks that disagree": (
        lambda: update(episodes=metajax.Episode(BATCH, jax.tree.map(lambda x: x[:3], BATCH))),
        "has 3 tasks on its leading axis",
    ),
    # parameters
    "no parameters": (lambda: LEARNER.init(None), "nothing to adapt"),
    "an integer": (lambda: LEARNER.init(3), "only floating-point arrays can be adapted"),
    "complex numbers": (lambda: LEARNER.init({"w": jnp.ones(2, jnp.complex64)}), "is complex64"),
    "a key": (lambda: LEARNER.init({"w": KEY}), "only floating-point arrays"),
    "shapes": (lambda: LEARNER.init(jax.eval_shape(lambda: PARAMS)), "ShapeDtypeStruct"),
    "a state": (lambda: LEARNER.init(STATE), "only floating-point arrays"),
    # optimizers
    "inner is a constructor": (lambda: metajax.maml(loss, optax.sgd, SGD), "inner .* optax trans"),
    "outer is a constructor": (lambda: metajax.maml(loss, SGD, optax.sgd), "outer .* optax trans"),
    "inner and loss swapped": (lambda: metajax.maml(SGD, loss, SGD), "loss must be a function"),
    "outer is learned": (
        lambda: metajax.maml(loss, SGD, metajax.learned_step_sizes(0.1)),
        "outer .* optax transformation",
    ),
    "adapt_only of no optimizer": (
        lambda: metajax.adapt_only(3, lambda path: True),
        "inner optimizer must be an optax transformation",
    ),
    "count_steps by no function": (
        lambda: metajax.count_steps(SGD, 3),
        "the path predicate must be",
    ),
    "on_params of no optimizer": (lambda: metajax.on_params(3), "must be an optax transformation"),
    "lookahead without a period": (
        lambda: metajax.lookahead(SGD, 0, 0.5),
        "must be a positive integer",
    ),
    "lookahead beyond its way": (
        lambda: metajax.lookahead(SGD, 2, float("nan")),
        r"slow_step_size must be a number in \[0, 1\]",
    ),
    "a decay that is no number": (
        lambda: metajax.alfa(0.1, 2, weight_decay=float("nan")),
        "alfa: weight_decay must be a number",
    ),
    "make returns a number": (
        lambda: trained(loss, metajax.LearnedOptimizer(lambda p: 0.1, lambda h: 3), SGD),
        r"LearnedOptimizer\.make must be an optax transformation",
    ),
    "an optimizer of nothing": (
        lambda: trained(loss, metajax.LearnedOptimizer(None, optax.sgd), SGD),
        "LearnedOptimizer.init must be a function",
    ),
    "an optimizer that makes nothing": (
        lambda: trained(loss, metajax.LearnedOptimizer(lambda p: 0.1, None), SGD),
        "LearnedOptimizer.make must be a function",
    ),
    "learned step sizes for Reptile": (
        lambda: update(
            (learner := metajax.reptile(loss, metajax.learned_step_sizes(0.1), SGD, num_steps=2)),
            learner.init(PARAMS),
        ),
        "learned hyper-parameters of the inner optimizer get no gradient from a displacement",
    ),
    "learned step sizes for a last update": (
        lambda: update(
            (learner := metajax.fomaml(loss, metajax.learned_step_sizes(0.1), SGD, tail="shared")),
            learner.init(PARAMS),
        ),
        "get no gradient from a displacement",
    ),
    "learned integers": (
        lambda: trained(loss, metajax.LearnedOptimizer(lambda p: 3, optax.sgd), SGD),
        "only floating-point ones can be learned",
    ),
    "updates of another shape": (
        lambda: trained(loss, returning(lambda g: {"w": g["w"][0]}), SGD),
        r"updates have the shapes .*\(1,\).* parameters have .*\(2, 1\)",
    ),
    "updates of another structure": (
        lambda: trained(loss, returning(lambda g: g["w"]), SGD),
        "updates have the shapes",
    ),
    "nan for a rate": (
        lambda: metajax.meta_sgd(loss, SGD, learning_rate=np.nan),
        r"number in .*, got nan",
    ),
    "text for a rate": (lambda: metajax.meta_sgd(loss, SGD, learning_rate="0.1"), "got '0.1'"),
    "None for a rate": (lambda: metajax.learned_step_sizes(None), "number in .*, got None"),
    "no step sizes": (lambda: metajax.learned_per_step_sizes(0.1, 0), "a positive integer, got 0"),
    "head is text": (lambda: metajax.anil(loss, SGD, SGD, head="w"), "path predicate must be a f"),
    "head is everything": (
        lambda: metajax.anil(loss, SGD, SGD, head=lambda path: True).init(PARAMS),
        r"all of \['w'\]",
    ),
    "body is nothing": (
        lambda: metajax.boil(loss, SGD, SGD, head=lambda path: True).init(PARAMS),
        r"none of \['w'\]",
    ),
    # arguments
    "no loss": (lambda: metajax.maml(None, SGD, SGD), "loss must be a function"),
    "a loss of two": (lambda: metajax.maml(lambda p, b: 0.0, SGD, SGD), r"\(params, batch, rng\)"),
    "steps that are traced": (
        lambda: metajax.maml(loss, SGD, SGD, num_steps=jnp.asarray(2)),
        "num_steps is static",
    ),
    "no steps": (lambda: metajax.maml(loss, SGD, SGD, num_steps=None), "got None"),
    "reptile's steps": (lambda: metajax.reptile(loss, SGD, SGD, num_steps="1"), "got '1'"),
    "engine by name": (lambda: metajax.maml(loss, SGD, SGD, meta_gradient="first"), "got str"),
    "batches by name": (lambda: metajax.maml(loss, SGD, SGD, batches="full"), "got 'full'"),
    "carry is true": (lambda: metajax.maml(loss, SGD, SGD, carry=True), "carry must be one of"),
    "carry is a list": (lambda: metajax.maml(loss, SGD, SGD, carry=[]), "carry must be one of"),
    "no chunk": (lambda: metajax.maml(loss, SGD, SGD, task_chunk=0), "task_chunk must be a pos"),
    "mesh is a number": (lambda: metajax.maml(loss, SGD, SGD, mesh=4), r"jax\.sharding\.Mesh"),
    "serial on a mesh": (
        lambda: metajax.maml(loss, SGD, SGD, mesh=metajax.task_mesh(1), carry="serial"),
        "a mesh cannot run",
    ),
    "proximal of nothing": (lambda: metajax.imaml(loss, SGD, SGD, proximal=0.0), "proximal > 0"),
    "implicit of no step": (
        lambda: metajax.imaml(loss, SGD, SGD, num_steps=0),
        "imaml: num_steps must be a positive integer",
    ),
    "annealing of -1": (
        lambda: metajax.maml_plus_plus(loss, SGD, SGD, annealed_updates=-1),
        "annealed_updates must be a non-negative integer",
    ),
    "devices by name": (lambda: metajax.task_mesh("2"), "num_devices must be .* got '2'"),
    "half a device": (lambda: metajax.task_mesh(1.5), "num_devices must be .* got 1.5"),
    "no devices": (lambda: metajax.task_mesh(0), "a positive integer, got 0"),
    "unroll": (lambda: metajax.inner_loop(loss, SGD, 2, unroll=0), "unroll must be a positive"),
    # losses
    "loss is a vector": (
        lambda: with_loss(lambda x: (x[None], {})),
        r"returned float32\[1\]",
    ),
    "loss is an integer": (lambda: with_loss(lambda x: (jnp.asarray(1), {})), "int32"),
    "loss is nothing": (lambda: with_loss(lambda x: None), "it returned NoneType"),
    "loss without metrics": (lambda: with_loss(lambda x: x), r"must return \(scalar, metrics\)"),
    "metrics are text": (lambda: with_loss(lambda x: (x, {"a": "b"})), r"metrics\['a'\] is str"),
    "loss is four": (lambda: with_loss(lambda x: (x, {}, {}, {})), "must return"),
    "loss is a list": (lambda: with_loss(lambda x: [x, {}]), "it returned list"),
    "loss is complex": (lambda: with_loss(lambda x: (x + 0j, {})), "complex64"),
    "cross_entropy of no model": (lambda: metajax.cross_entropy(3), "apply must be a function"),
    "squared_error of no model": (lambda: metajax.squared_error(3), "apply must be a function"),
    "accuracy of no model": (lambda: metajax.accuracy(None), "apply must be a function"),
    "mse of no model": (lambda: metajax.mse(None), "apply must be a function"),
    "mask of numbers": (
        lambda: metajax.squared_error(apply)(PARAMS, (*ONE.support, jnp.ones(5)), KEY),
        r"booleans \[examples\], here \[5\], got float32\[5\]",
    ),
    "mask of another size": (
        lambda: metajax.squared_error(apply)(PARAMS, (*ONE.support, jnp.ones(3) > 0), KEY),
        r"here \[5\], got bool\[3\]",
    ),
    # batches
    "cycle of nothing": (lambda: metajax.cycle(0), "batch_size must be a positive integer"),
    "cycle of halves": (lambda: metajax.cycle(2.5), "got 2.5"),
    "replacement of -1": (lambda: metajax.replacement(-1), "got -1"),
    "cycle of more": (
        lambda: update(metajax.maml(loss, SGD, SGD, batches=metajax.cycle(50))),
        "exceeds the 5 examples",
    ),
    "batches of other steps": (
        lambda: update(metajax.maml(loss, SGD, SGD, num_steps=3, batches=metajax.per_step())),
        "leading axis must be the 3 inner steps",
    ),
    # objectives
    "query_loss of a number": (lambda: metajax.query_loss(3), "loss must be a function"),
    "displacement of a number": (lambda: metajax.displacement(3), "loss must be a function"),
    "a tail of a number": (lambda: metajax.last_update(tail=3), "tail must be of type Adapt"),
    "weights are text": (
        lambda: metajax.multi_step_query_loss(loss, "ab"),
        r"every weight must be a number in .*, got 'a'",
    ),
    "a weight": (
        lambda: metajax.weighted_updates(3),
        "weights must be one number for each inner step, got 3",
    ),
    "weights of no steps": (
        lambda: weighted(metajax.multi_step_query_loss(loss), num_steps=0),
        "0 adaptation steps .* at least one; got none",
    ),
    "too few weights": (
        lambda: weighted(metajax.weighted_updates([1.0])),
        "2 adaptation steps need as many weights",
    ),
    "a loss for an adaptation": (
        lambda: metajax.meta_learner(loss, metajax.query_loss(loss), SGD),
        "adapt must be of type Adapt, from inner_loop",
    ),
    "a loss for an objective": (
        lambda: metajax.meta_learner(ADAPT, loss, SGD),
        r"objective must be a function .*query_loss\(loss\)",
    ),
    # evaluation
    "evaluating a learner": (
        lambda: scored(adapt=LEARNER),
        "must be of type Adapt",
    ),
    "evaluating parameters": (lambda: scored(state=PARAMS), "must be of type MetaState"),
    "no metric": (lambda: scored({}), "metric must be a function"),
    "a metric of text": (lambda: scored(lambda p, e, r: "a"), "is str"),
    "a step too far": (
        lambda: scored(metajax.AtSteps(lambda p, e, r: 1.0, [5])),
        "within 0 to 2",
    ),
    "half a step": (lambda: scored(metajax.AtSteps(lambda p, e, r: 1.0, [0.5])), "steps must be"),
    "a step": (lambda: scored(metajax.AtSteps(lambda p, e, r: 1.0, 1)), "steps must be"),
    "no steps to score": (lambda: scored(metajax.AtSteps(lambda p, e, r: 1.0, ())), "got ()"),
    "None for steps": (lambda: scored(metajax.AtSteps(lambda p, e, r: 1.0, None)), "got None"),
    "a metric of nothing": (lambda: scored(lambda p, e, r: None), "the metric returns no array"),
    "a metric of no entries": (lambda: scored(lambda p, e, r: {}), "the metric returns no array"),
    "predictions of another shape": (
        lambda: scored(metajax.mse(lambda p, x: apply(p, x)[:, 0])),
        r"the predictions have shape \(5,\)",
    ),
    "one-hot labels": (lambda: scored(metajax.accuracy(lambda p, x: x)), "jnp.argmax"),
    # checks
    "differentiating a number": (
        lambda: metajax.check_differentiable(3, PARAMS),
        "must be an optax transformation",
    ),
    "an objective's key": (
        lambda: metajax.query_loss(loss)(ADAPT, STATE.meta_params, ONE, 3),
        "rng must be one key",
    ),
    "weights of nothing": (lambda: metajax.weighted_updates(None), "one number for each inner"),
    "a weight of NaN": (
        lambda: metajax.multi_step_query_loss(loss, weights=(np.nan, 1.0)),
        "every weight must be a number in .*, got nan",
    ),
    "no function over tasks": (lambda: metajax.over_tasks(None), "over_tasks: fn must be a func"),
    "the symmetry of integers": (
        lambda: metajax.check_symmetric(loss, {"w": jnp.ones(2, int)}, ONE.support, KEY),
        "only floating-point arrays can be adapted",
    ),
    "the symmetry of nothing": (
        lambda: metajax.check_symmetric(loss, {}, ONE.support, KEY),
        "there is nothing to adapt",
    ),
    "a displacement of other parameters": (
        lambda: update(
            metajax.meta_learner(
                metajax.start_from(
                    lambda meta_params, support, rng: {**meta_params.params, "h": jnp.ones(())},
                    ADAPT,
                ),
                metajax.displacement(),
                SGD,
            )
        ),
        "displacement: adaptation moves parameters with .*: use query_loss",
    ),
    "a head in closed form with a state": (
        lambda: metajax.closed_form(lambda p, x: x, metajax.prototypes(), ways=2).apply(
            metajax.MetaParams(metajax.Stateful(PARAMS, ())),
            (jnp.eye(2), jnp.arange(2)),
            KEY,
        ),
        "parameters alone, not metajax.Stateful",
    ),
    "the symmetry of a number": (
        lambda: metajax.check_symmetric(3, PARAMS, ONE.support, KEY),
        "loss must be a function",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_clear_line(name):
    misuse, message = CASES[name]
    with pytest.raises(ValueError, match=message) as error:
        misuse()
    assert "\n" not in str(error.value)


def test_older_keys_go_on_working():
    jax.tree.map(
        np.testing.assert_array_equal, update(rng=jax.random.PRNGKey(0))[0], update(rng=KEY)[0]
    )
