"""The arguments of a training run, and one line with the cause and the remedy for wrong ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import Sinusoid
from tests.train.runs import SETTINGS, assert_equal, fit, initial, learner, loss, own, validation

OWN = own()


EPISODE = Sinusoid().sample(jax.random.key(0))


MAML = learner()


@dataclasses.dataclass
class Unregistered:
    slopes: jax.Array

    def sample(self, rng):
        return EPISODE


def updating(update):
    return OWN._replace(update=lambda state, episodes, rng: update(state))


def measured_by(measure, metric="mse", tasks=None):
    return {"validation": train.Validation(tasks or Sinusoid(), measure, metric)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": EPISODE}, r"fit: tasks must be .*`lambda rng: episode` for .*, got Episode\."),
        ({"tasks": None}, r"fit: tasks must be a distribution, such as .*, got NoneType\."),
        ({"tasks": (x for x in [EPISODE])}, r"fit: tasks must be a distr.*, got generator\."),
        ({"tasks": [EPISODE]}, r"fit: tasks must be a distribution, .*, got list\."),
        ({"tasks": Sinusoid}, "mind the parentheses"),
        ({"tasks": lambda: EPISODE}, r"must be a function \(rng\)"),
        ({"tasks": lambda rng: EPISODE.support}, r"must be a metajax\.Episode.* returned tuple"),
        (
            {"tasks": Unregistered(jnp.ones(2))},
            "Unregistered must be a pytree .*register_dataclass",
        ),
        ({"learner": loss}, r"fit: learner must be .*metajax\.maml\(.*, got function\."),
        ({"learner": None}, r"fit: learner must be .*, got NoneType\."),
        ({"learner": optax.sgd(0.1)}, r"fit: learner must be .*, got GradientTransf.*"),
        ({"learner": metajax.maml}, r"fit: learner must be .*, got function\."),
        (
            {"learner": OWN._replace(init=lambda params: params)},
            "must return .*State, but .* dict",
        ),
        ({"learner": updating(lambda state: state)}, "dict of metrics.*, but returned MetaState"),
        ({"learner": updating(lambda state: (state, None))}, r"returned \(MetaState, NoneType\)"),
        ({"learner": updating(lambda state: (state, {}))}, "state.step, which is 0 after 10"),
        ({"params": {}}, "there is nothing to adapt: params has no arrays"),
        ({"params": None}, "there is nothing to adapt: params has no arrays"),
        ({"params": {}, "learner": OWN}, "fit: there is nothing to learn: params has no arrays"),
        ({"key": 3}, r"fit: key must be one key, such as jax\.random\.key\(0\), got int\."),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"must be one key, .*key<fry>\(3,\)"),
        ({"key": None}, r"fit: key must be one key, .*, got NoneType\."),
        ({"mesh": 4}, r"fit: mesh must be .*metajax\.task_mesh\(\), got int\."),
        ({"num_meta_steps": 0}, "num_meta_steps must be a positive integer, got 0"),
        ({"num_meta_steps": "60"}, "num_meta_steps must be a positive integer, got '60'"),
        ({"num_meta_steps": True}, "num_meta_steps must be a positive integer, got True"),
        ({"meta_batch_size": 1.5}, "meta_batch_size must be a positive integer, got 1.5"),
        ({"steps_per_call": None, "validate_every": None}, "steps_per_call .* integer, got None"),
        ({"validate_every": 0}, "validate_every must be a positive integer, got 0"),
        ({"validate_every": 15}, "validate_every=15 must be a multiple of steps_per_call=10"),
        ({"checkpoint_every": 5}, "checkpoint_every=5 must be a multiple"),
        ({"checkpoint_every": "20"}, "checkpoint_every must be a positive integer, got '20'"),
        ({"validation": validation().measure}, r"validation must be a train\.Valid.* got function"),
        (
            {"validation": tuple(validation())},
            r"validation must be a train\.Validation.* got tuple",
        ),
        ({"validation": validation("least")}, "Validation.mode must be .*got 'least'"),
        (measured_by(None), r"Validation\.measure must be a function \(state, tasks, rng\)"),
        (measured_by(lambda state, tasks: {}), r"Validation\.measure must be a function \(state"),
        (measured_by(lambda *_: jnp.ones(())), "must return a dict of scalars, 'mse' among them"),
        (measured_by(lambda *_: {}), "Validation.metric is 'mse', but .* only an empty dict"),
        (
            measured_by(validation().measure, "accuracy"),
            "Validation.metric is 'accuracy', but measure returned only 'mse'",
        ),
        (
            measured_by(lambda *_: {"mse": jnp.ones(3)}),
            r"Validation.metric 'mse' must be a scalar, but measure returned shape \(3,\)",
        ),
        (measured_by(lambda *_: {"mse": jnp.ones((), complex)}), "'mse' is complex, which has no"),
        ({"workdir": 3}, "a workdir must be a string or a path, got 3"),
        (measured_by(lambda *_: {"mse": 1.0}, tasks=Unregistered(jnp.ones(2))), "must be a pytree"),
        ({"config": 3}, "config must be a dict of JSON data, got int"),
        (
            {"config": {"seed": 0, "rate": jnp.ones(2)}},
            r"config\['rate'\] is not JSON data .*Array",
        ),
        ({"config": {"model": {"loss": loss}}}, r"config\['model'\] is not JSON data .*function"),
        ({"config": {(1, 2): 0}}, r"config\[\(1, 2\)\] is not JSON data"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(arguments, message, tmp_path):
    arguments = {"learner": MAML, "params": initial(), "tasks": Sinusoid(), **arguments}
    with pytest.raises(ValueError, match=message) as refused:
        train.fit(**{**SETTINGS, "workdir": tmp_path, **arguments})
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())


def test_legacy_keys_and_integers_of_numpy_work(tmp_path, whole):
    legacy = jax.random.key_data(SETTINGS["key"])
    changes = {name: np.int64(n) for name, n in SETTINGS.items() if type(n) is int}
    expected = whole[1].state  # a validation changes no state
    assert_equal(fit(workdir=tmp_path, **{**changes, "key": legacy}).state, expected)
    assert_equal(train.load(tmp_path, MAML, initial()).state, expected)


def test_a_function_is_a_distribution_of_tasks(whole):
    sinusoid = Sinusoid()
    chosen = validation()._replace(tasks=sinusoid.sample)
    result = fit(tasks=sinusoid.sample, validation=chosen)
    assert_equal(result.state, whole[1].state)
    assert result.best_metrics == whole[1].best_metrics
