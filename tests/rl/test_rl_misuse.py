"""What is of the wrong kind, shape, size or range is refused in one line with cause and remedy."""

import re

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from tests.rl.environments import chase

NAN, KEY = float("nan"), jax.random.key(0)
ENV, SGD = chase(), optax.sgd(0.1)
MODEL = rl.GaussianMLP(2, hidden=())
START = MODEL.init(KEY, jnp.zeros(2))
TASK = {"goal": jnp.ones(2)}
TASKS = metajax.Episode({"goal": jnp.ones((3, 2))}, ())


def sample(params, task, rng):
    raise AssertionError


LOOP = rl.inner_loop(MODEL.apply, sample, SGD)
REAL = rl.inner_loop(MODEL.apply, rl.sampler(ENV, MODEL.apply, 4), SGD)
TRPO = rl.maml_trpo(REAL)
PROMP = rl.promp(REAL, SGD)


def trpo(**kwargs):
    return rl.maml_trpo(LOOP, **kwargs)


def promp(optimizer=SGD, **kwargs):
    return rl.promp(LOOP, optimizer, **kwargs)


def sampler(env=ENV, policy=MODEL.apply, count=4, **kwargs):
    return rl.sampler(env, policy, count, **kwargs)


def roll(env=ENV, policy=MODEL.apply, task=TASK, rng=KEY, count=3):
    with jax.numpy_rank_promotion("allow"):  # as for a user
        return jax.eval_shape(lambda: rl.rollout(env, policy, START, task, rng, count))


def shows(**changes):
    """Rolls an environment out of which every step is changed."""
    changed = {name: change for name, change in changes.items() if name != "only_step"}

    def wrong(step):
        return step._replace(**{name: f(getattr(step, name)) for name, f in changed.items()})

    def reset(rng, task):
        step = ENV.reset(rng, task)
        return step if changes.get("only_step") else wrong(step)

    return roll(ENV._replace(reset=reset, step=lambda s, a: wrong(ENV.step(s, a))))


def trajectories(*shape, **changes):
    zeros = jnp.zeros(shape)
    observations = jnp.zeros((*shape, 2))
    normal = rl.Normal(observations, observations)
    found = rl.Trajectories(
        observations, observations, zeros, zeros, normal, zeros, jnp.zeros(shape[:-1])
    )
    return found._replace(**changes)


def gymnax_env(name="CartPole-v1", sample_tasks=lambda rng, n: {}, **kwargs):
    return rl.from_gymnax(gymnax.make(name)[0], sample_tasks, **kwargs)


class Dicts(type(gymnax.make("CartPole-v1")[0])):
    def observation_space(self, params):
        return gymnax.environments.spaces.Dict({})


CASES = {
    # Numbers.
    "max_kl": (lambda: trpo(max_kl=0.0), r"max_kl must be a number in \(0, inf\), got 0.0"),
    "max_kl nan": (lambda: trpo(max_kl=NAN), "max_kl must be .* got nan"),
    "max_kl inf": (lambda: trpo(max_kl=float("inf")), "max_kl must be .* got inf"),
    "max_kl text": (lambda: trpo(max_kl="1"), "max_kl must be a number .* got '1'"),
    "max_kl bool": (lambda: trpo(max_kl=True), "max_kl must be a number .* got True"),
    "max_kl array": (lambda: trpo(max_kl=jnp.ones(2)), r"max_kl .* got float32\[2\]"),
    "max_kl schedule": (lambda: trpo(max_kl=lambda: 0.1), r"max_kl must be a function \(meta_upd"),
    "damping": (lambda: trpo(damping=-1e-5), r"damping must be a number in \[0, inf\)"),
    "damping nan": (lambda: trpo(damping=NAN), "damping must be .* got nan"),
    "backtrack": (lambda: trpo(backtrack=1.0), r"backtrack must be a number in \(0, 1\), got 1.0"),
    "backtrack nan": (lambda: trpo(backtrack=NAN), "backtrack must be .* got nan"),
    "cg_steps": (lambda: trpo(cg_steps=0), "cg_steps must be a positive integer, got 0"),
    "cg_steps float": (lambda: trpo(cg_steps=2.5), "cg_steps must be .* integer, got 2.5"),
    "max_backtracks": (lambda: trpo(max_backtracks=True), "max_backtracks must .* got True"),
    "stride": (lambda: trpo(curvature_stride=-1), "curvature_stride must be .* got -1"),
    "clip": (lambda: promp(clip=0.0), r"clip must be a number in \(0, inf\], got 0.0"),
    "clip nan": (lambda: promp(clip=NAN), "clip must be .* got nan"),
    "penalty": (lambda: promp(kl_penalty=-1.0), "kl_penalty must be .* got -1.0"),
    "bonus": (lambda: promp(entropy_bonus=-1.0), "entropy_bonus must be .* got -1.0"),
    "epochs": (lambda: promp(num_epochs=1.5), "num_epochs must be .* integer, got 1.5"),
    "discount": (lambda: sampler(discount=1.1), r"discount must be a number in \[0, 1\], got 1.1"),
    "lambda": (lambda: sampler(gae_lambda=-0.1), "gae_lambda must be .* got -0.1"),
    "discount nan": (
        lambda: rl.standardized_advantages(trajectories(2, 3), discount=NAN),
        "discount must be .* got nan",
    ),
    "count": (lambda: sampler(count=0), "num_trajectories must be a positive integer, got 0"),
    "discrete actions to standardize": (
        lambda: rl.standardized(ENV._replace(discrete=True), KEY),
        "standardized: .* discrete actions",
    ),
    "bound": (lambda: rl.standardized(ENV, KEY, bound=NAN), "bound must be .* got nan"),
    "standardized": (
        lambda: rl.standardized(ENV, KEY, num_trajectories=0),
        "num_trajectories must be a positive integer, got 0",
    ),
    "context": (
        lambda: rl.with_context(MODEL.init, MODEL.apply, -1),
        "context_size must be a positive integer, got -1",
    ),
    "policy size": (lambda: rl.GaussianMLP(0), "action_size must be a positive integer, got 0"),
    "hidden": (lambda: rl.GaussianMLP(2, hidden=5), "hidden must be a tuple of widths, got 5"),
    "width": (lambda: rl.GaussianMLP(2, hidden=(4.0,)), "width of hidden must be .* got 4.0"),
    "log_std": (lambda: rl.GaussianMLP(2, init_log_std=NAN), "init_log_std must be .* got nan"),
    "horizon": (lambda: sampler(ENV._replace(horizon=0)), "env.horizon must be a pos.* got 0"),
    "chunk": (lambda: trpo(task_chunk=0), "task_chunk must be a positive integer, got 0"),
    "mesh": (lambda: promp(mesh=2), "mesh must be a jax.sharding.Mesh"),
    # Kinds.
    "loop": (
        lambda: rl.maml_trpo(LOOP.replay),
        "loop must be of type InnerLoop, from rl.inner_loop; got Adapt",
    ),
    "outer optimizer": (lambda: promp(0.1), "outer_optimizer must be an optax transformation"),
    "reptile's optimizer": (
        lambda: rl.reptile(LOOP, optax.sgd),
        "outer_optimizer must be an optax transformation",
    ),
    "inner optimizer": (
        lambda: rl.inner_loop(MODEL.apply, sample, 0.1),
        "optimizer must be an optax transformation",
    ),
    "surrogate": (
        lambda: rl.inner_loop(MODEL.apply, sample, SGD, surrogate="dice"),
        r"surrogate must be a function .* such as rl.dice, got 'dice'",
    ),
    "sample": (
        lambda: rl.inner_loop(MODEL.apply, ENV, SGD),
        r"sample must be a function \(params, task, rng\) from rl.sampler",
    ),
    "model": (lambda: sampler(policy=MODEL), r"policy must be .* such as model.apply, got Gauss"),
    "policy": (lambda: sampler(policy=3), r"policy must be a function \(params, observations\)"),
    "env": (
        lambda: sampler(env=3),
        "env must be of type Env, for example from rl.from_gymnax .*; got int",
    ),
    "oracle": (lambda: rl.oracle("Ant"), "oracle: env must be of type Env"),
    "policy_return": (lambda: rl.policy_return(ENV, MODEL, 3), "policy must be a function"),
    "tasks": (lambda: rl.Tasks(ENV), r"sample_tasks must be a function \(rng, n\)"),
    "state": (lambda: TRPO.update(START, TASKS, KEY), "of type MetaState, .* got dict"),
    "another's state": (
        lambda: TRPO.update(PROMP.init(START)._replace(opt_state=()), TASKS, KEY),
        r"the state's opt_state belongs to another .* learner's init\(params\)",
    ),
    "trpo's state": (
        lambda: PROMP.update(TRPO.init(START), TASKS, KEY),
        r"the state's opt_state belongs to another .* learner's init\(params\)",
    ),
    "key": (lambda: roll(rng=0), "rollout: rng must be one key"),
    "keys": (
        lambda: TRPO.update(TRPO.init(START), TASKS, jax.random.split(KEY, 3)),
        "rng must be one key",
    ),
    "collect's key": (
        lambda: rl.collect(REAL, metajax.MetaParams(START), TASK, None),
        "collect: rng must be one key",
    ),
    "outer line search": (
        lambda: rl.promp(REAL, optax.lbfgs()).init(START),
        "the outer optimizer's update cannot be called",
    ),
    "episodes": (lambda: PROMP.update(PROMP.init(START), TASK, KEY), "of type Episode"),
    "meta_params": (lambda: rl.collect(REAL, START, TASK, KEY), "must be of type MetaParams"),
    "replay": (lambda: rl.replay(REAL, START, ()), "must be of type MetaParams"),
    "collected": (
        lambda: rl.loss_and_kl(REAL, metajax.MetaParams(START), trajectories(2, 3)),
        "must be of type Collected, as rl.collect returns",
    ),
    "return": (lambda: rl.mean_return(TASK), "trajectories must be of type Trajectories"),
    "gymnax": (
        lambda: rl.from_gymnax(gymnax.make("CartPole-v1"), ENV.sample_tasks),
        r"must be a gymnax environment, such as gymnax.make\(name\)\[0\], got",
    ),
    "gymnax tasks": (lambda: gymnax_env(sample_tasks=3), "sample_tasks must be a function"),
    "gymnax horizon": (lambda: gymnax_env(horizon=2.5), "horizon, .* integer, got 2.5"),
    "gymnax spaces": (
        lambda: rl.from_gymnax(Dicts(), lambda rng, n: {}),
        "observations must be arrays, and actions discrete or vectors",
    ),
    "gymnax task": (
        lambda: gymnax_env().reset(KEY, {"goal": 1.0}),
        "a task must be a dict with keys .*gravity.*, got goal",
    ),
    "gymnax task's kind": (
        lambda: gymnax_env().reset(KEY, 9.8),
        "must be a dict with keys .*, got 9.8",
    ),
    "brax": (lambda: rl.from_brax("ant", ENV.sample_tasks), "must be a brax.envs.Env"),
    # Shapes.
    "observation": (
        lambda: roll(ENV._replace(observation_size=3)),
        r"env.reset .* return an observation \[3\], .* returned float32\[3, 2\]",
    ),
    "several tasks": (
        lambda: roll(rl.oracle(ENV), task=TASKS.support),
        r"env.reset of one task must return an observation \[4\], .* returned float32\[3, 8\]",
    ),
    "reward": (lambda: shows(reward=lambda x: x[None]), r"scalar reward .* float32\[3, 1\]"),
    "done": (lambda: shows(done=lambda x: 0.0 * x), r"a scalar bool done; .* float32\[3\]"),
    "step's reward": (
        lambda: shows(reward=lambda x: x[None], only_step=True),
        "env.step of one task must return",
    ),
    "a state's type": (
        lambda: shows(state=lambda x: (x[0].astype(jnp.float16), x[1]), only_step=True),
        r"env.step must keep shapes and types, but \.state\[0\] is float32\[3, 2\] before the s",
    ),
    "a state's structure": (
        lambda: shows(state=lambda x: x[0], only_step=True),
        "env.step must return the same structure",
    ),
    "no EnvStep": (
        lambda: roll(ENV._replace(reset=lambda rng, task: (task, jnp.zeros(2)))),
        "the value that env.reset returns must be of type EnvStep",
    ),
    "no distribution": (
        lambda: roll(policy=lambda params, x: x),
        r"must return a distribution .*; float32\[3, 2\] has no sample",
    ),
    "too few actions": (
        lambda: roll(policy=lambda params, x: rl.Normal(x[:, :1], x[:, :1])),
        r"must be \[3, 2\] for 3 observations and env.action_size=2, got float32\[3, 1\]",
    ),
    "one deviation": (
        lambda: roll(policy=lambda params, x: rl.Normal(x, jnp.zeros(2))),
        r"must be \[3, 2\] .* got float32\[2\]",
    ),
    "tasks without an axis": (
        lambda: rl.Tasks(lambda rng, n: {"goal": jnp.ones(2)}).sample(KEY),
        r"must return arrays \[1, ...\], but it returned {'goal': 'float32\[2\]'}",
    ),
    "no tasks": (
        lambda: rl.oracle(ENV._replace(sample_tasks=lambda rng, n: {})),
        r"must return arrays \[1, ...\], but it returned {}",
    ),
    "other tasks": (
        lambda: rl.standardized(
            ENV._replace(sample_tasks=lambda rng, n: jnp.ones(5)), KEY, num_trajectories=4
        ),
        r"must return arrays \[4, ...\], but it returned 'float32\[5\]'",
    ),
    "no advantages": (
        lambda: rl.dice(MODEL.apply, START, trajectories(2, 3, advantages=())),
        "the trajectories have no advantages; rl.sampler computes them",
    ),
    "advantages": (
        lambda: rl.log_likelihood(
            MODEL.apply, START, trajectories(2, 3, advantages=jnp.ones((2, 3, 1)))
        ),
        r"advantages and mask must both be .* are float32\[2, 3, 1\] and float32\[2, 3\]",
    ),
    "advantages of several tasks": (
        lambda: rl.standardized_advantages(trajectories(5, 2, 3)),
        r"of one task's trajectories .* got float32\[5, 2, 3\]; use jax.vmap",
    ),
    "steps": (
        lambda: rl.replay(REAL, metajax.MetaParams(START), trajectories(2, 4, 3)),
        "its leading axis must be the 1 inner steps",
    ),
    "sums": (
        lambda: rl.discounted_sums(1.0, 0.5),
        r"x must be \[..., horizon\], but it is a scalar",
    ),
    "action": (
        lambda: rl.Normal(jnp.ones((4, 1)), jnp.ones((4, 1))).log_prob(jnp.ones(4)),
        r"the same last axis, but they are float32\[4\] and float32\[4, 1\]",
    ),
    "discrete action": (
        lambda: rl.Categorical(jnp.ones((4, 3))).log_prob(jnp.ones(4)),
        r"actions must be integers .* action is float32\[4\] and the logits are float32\[4, 3\]",
    ),
    "discrete action's shape": (
        lambda: rl.Categorical(jnp.ones((4, 3))).log_prob(jnp.ones((4, 1), int)),
        r"actions must be integers .* but the action is int32\[4, 1\]",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_in_one_line(name):
    call, message = CASES[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert re.search(message, str(caught.value)), caught.value
    assert len(str(caught.value).splitlines()) == 1


def test_numbers_of_all_kinds_are_taken():
    for one in (1, 1.0, np.int64(1), np.float32(1), np.ones(()), jnp.ones(()), jnp.ones((), int)):
        trpo(max_kl=one, damping=one)
        sampler(discount=one, gae_lambda=one)
    promp(clip=float("inf"), num_epochs=np.int64(2))
    rl.GaussianMLP(2, hidden=[4], min_log_std=float("-inf"))


def test_a_gymnax_horizon_may_be_a_whole_float():
    assert gymnax_env("BernoulliBandit-misc").horizon == 100
