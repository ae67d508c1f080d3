"""Tasks over the devices of a mesh: the same numbers, one all-reduce."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import metajax
from metajax import train
from metajax.machine import CPU_CHUNK_BYTES
from metajax.parallel import default_chunk
from tests.helpers import assert_close, mlp, mlp_loss, mlp_params, regression
from tests.test_learner import ALGORITHMS, BY_PLACE, over

EPISODES = regression(tasks=12, dtype=jnp.float32)
KEY = jax.random.key(7)
FEW = {"maml", "reptile_mean", "maml_plus_plus", "anil"}
SGD = optax.sgd(0.1)


def updated(name, **kwargs):
    learner = ALGORITHMS[name](mlp_loss, optax.sgd(0.03, momentum=0.9), **kwargs)
    state = learner.init(mlp_params(dtype=jnp.float32))
    return jax.jit(learner.update)(state, EPISODES, KEY)


# Three tasks a device: a chunk of two, and a rest of one.
@over(sorted(ALGORITHMS.keys() - BY_PLACE - {"reptile_serial"}), ALGORITHMS.keys() - FEW)
def test_devices_do_not_change_a_number(name):
    sharded = updated(name, mesh=metajax.task_mesh(4), task_chunk=2)
    assert_close(sharded, updated(name), rtol=1e-4, atol=1e-6)


def test_one_all_reduce_of_the_meta_gradient_and_the_metrics():
    learner = metajax.maml(mlp_loss, SGD, SGD, num_steps=2, mesh=metajax.task_mesh(4))
    state = learner.init(mlp_params(dtype=jnp.float32))
    module = jax.jit(learner.update).lower(state, EPISODES, KEY).compile().as_text()
    reductions = re.findall(r"= (\S+) all-reduce(?:-start)?\(", module)
    # 21 parameters; objective, query loss and metric, support losses and metrics of two steps.
    assert [shape.split("{")[0] for shape in reductions] == ["f32[28]"]
    assert "all-gather" not in module


def test_evaluation_over_devices():
    adapt = metajax.inner_loop(mlp_loss, SGD, 2)
    state = metajax.maml(mlp_loss, SGD, SGD).init(mlp_params(dtype=jnp.float32))
    found, expected = (
        metajax.evaluate(adapt, metajax.mse(mlp), state, EPISODES, KEY, mesh=mesh)
        for mesh in (metajax.task_mesh(4), None)
    )
    assert_close(found, expected, rtol=1e-5)


def test_training_over_devices(tmp_path):
    def fitted(mesh, workdir, num_meta_steps=4, told=True):
        learner = metajax.maml(mlp_loss, SGD, optax.adam(1e-2), mesh=mesh)
        return train.fit(
            learner,
            mlp_params(sizes=(1, 8, 1), dtype=jnp.float32),
            metajax.tasks.Sinusoid(),
            key=KEY,
            num_meta_steps=num_meta_steps,
            meta_batch_size=8,
            steps_per_call=2,
            checkpoint_every=2,
            workdir=workdir,
            mesh=mesh if told else None,
            show_progress=False,
        ).state

    mesh = metajax.task_mesh(4)
    single = fitted(None, None)
    assert_close(fitted(mesh, None).meta_params, single.meta_params, rtol=1e-4, atol=1e-6)
    for told in (True, False):  # the learner knows its devices
        fitted(mesh, tmp_path / str(told), 2, told)
        again = fitted(mesh, tmp_path / str(told), 4, told)
        assert_close(again.meta_params, single.meta_params, rtol=1e-4, atol=1e-6)


def test_errors():
    mesh = metajax.task_mesh(8)
    learner = metajax.maml(mlp_loss, SGD, SGD, mesh=mesh)
    state = learner.init(mlp_params(dtype=jnp.float32))
    with pytest.raises(ValueError, match="12 tasks cannot be shared equally by the 8 devices"):
        learner.update(state, EPISODES, KEY)
    with pytest.raises(ValueError, match=r"such as metajax.task_mesh\(\), got int"):
        metajax.maml(mlp_loss, SGD, SGD, mesh=2)
    with pytest.raises(ValueError, match='carry="serial" runs the tasks one after another'):
        metajax.reptile(mlp_loss, SGD, SGD, num_steps=1, carry="serial", mesh=mesh)
    with pytest.raises(ValueError, match=r"9 devices requested.* 8 \(cpu\).*jax_num_cpu_devices"):
        metajax.task_mesh(9)


@pytest.mark.parametrize(
    ("parameters", "tasks", "chunk"),
    [
        (1, 5, 5),
        (1, 12, 6),  # in equal chunks of no more than 8
        (1, 25, 5),
        (1, 23, 8),  # and a rest of 7
        (CPU_CHUNK_BYTES // 16, 12, 3),
        (CPU_CHUNK_BYTES, 12, 1),
    ],
)
def test_a_cpu_takes_few_tasks_at_a_time_that_its_cache_holds(parameters, tasks, chunk):
    shared = np.zeros(parameters, np.float32)
    assert default_chunk(shared, np.zeros((tasks, 1), np.float32)) == chunk


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_a_rest_counts_by_its_tasks(chunk):
    def mean(shared, tasks, carry):
        return jnp.mean(shared * tasks), carry + jnp.sum(tasks)

    numbers = jnp.arange(8.0) ** 2
    found, carried = metajax.over_tasks(mean, task_chunk=chunk)(2.0, numbers, 0.0)
    np.testing.assert_allclose(found, 2 * np.mean(np.arange(8.0) ** 2), rtol=1e-6)
    assert float(carried) == 140.0


def wide(params, batch, rng):
    x, y = batch
    hidden = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] - y) ** 2), {}


WIDE = {"w": (1, 16), "b": (16,), "v": (16, 1)}
BY_MODEL = {"w": (None, "model"), "b": ("model",), "v": ("model", None)}


@pytest.mark.parametrize("shape", [(2, 2), (1, 4)])
def test_a_model_axis_is_left_to_the_compiler(tmp_path, shape):
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(shape), ("tasks", "model"))
    rng = np.random.default_rng(0)
    whole = {k: jnp.asarray(rng.normal(size=s) / 4, jnp.float32) for k, s in WIDE.items()}
    sharded = {
        name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*BY_MODEL[name])))
        for name, x in whole.items()
    }
    inner = optax.adam(0.01, b1=0.0, eps_root=1e-8)

    def fitted(params, mesh, workdir=None, num_meta_steps=8):
        learner = metajax.maml(wide, inner, optax.adam(1e-2), num_steps=3, mesh=mesh)
        return train.fit(
            learner,
            params,
            metajax.tasks.Sinusoid(),
            key=KEY,
            num_meta_steps=num_meta_steps,
            meta_batch_size=4,
            steps_per_call=2,
            checkpoint_every=4,
            workdir=workdir,
            config={},
            mesh=mesh,
            show_progress=False,
        ).state

    expected = fitted(whole, None)
    fitted(sharded, mesh, tmp_path, 4)
    found = fitted(sharded, mesh, tmp_path)
    assert_close(found.meta_params, expected.meta_params, rtol=1e-4, atol=1e-6)
    adam = next(x for x in found.opt_state if hasattr(x, "mu"))
    for params in (found.meta_params.params, adam.mu.params, adam.nu.params):
        for name, x in params.items():
            assert x.sharding.spec == PartitionSpec(*BY_MODEL[name])
    # Onto a mesh of another shape, from the same checkpoint.
    assert_close(fitted(whole, None, tmp_path).meta_params, found.meta_params, rtol=0, atol=0)


def test_a_mesh_without_the_axis_of_the_tasks_is_refused():
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("devices",))
    with pytest.raises(ValueError, match=r"must have an axis 'tasks', .* but has 'devices'"):
        metajax.maml(mlp_loss, SGD, SGD, mesh=mesh)


@pytest.mark.optimized
def test_the_collectives_over_a_model_axis():
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("tasks", "model"))
    params = {
        name: jax.device_put(jnp.ones(shape), NamedSharding(mesh, PartitionSpec(*BY_MODEL[name])))
        for name, shape in {**WIDE, "w": (2, 16)}.items()
    }
    learner = metajax.maml(wide, SGD, SGD, num_steps=2, mesh=mesh)
    state = learner.init(params)
    module = jax.jit(learner.update).lower(state, EPISODES, KEY).compile().as_text()
    found = re.findall(r"= (.+) (all-[a-z]+|reduce-scatter|collective-permute)[a-z-]*\(", module)
    # No parameter is gathered: what is reduced are halves of gradients, hidden sums and scalars.
    assert {kind for _, kind in found} == {"all-reduce"}
    assert not re.search(r"f32\[(\d+,)*16\]", " ".join(shape for shape, _ in found))


@pytest.mark.parametrize("options", [{}, {"task_chunk": 1}, {"task_chunk": 3}, {"mesh": 4}])
def test_integers_are_those_of_the_first_task(options):
    """Whatever the chunks and devices; integer metrics are averaged like others."""
    if "mesh" in options:
        options = {"mesh": metajax.task_mesh(options["mesh"])}

    def loss(model, batch, rng):
        positive = (batch.sum() > 0).astype(jnp.int32)
        state = {"count": model.state["count"] + positive, "key": model.state["key"]}
        return jnp.mean((model.params - batch) ** 2), {"positive": positive}, state

    learner = metajax.maml(loss, optax.sgd(0.1), optax.sgd(0.1), num_steps=2, **options)
    state = learner.init(
        metajax.Stateful(jnp.zeros(()), {"count": jnp.int32(0), "key": jax.random.key(1)})
    )
    batch = jnp.concatenate([jnp.ones((2, 3)), -jnp.ones((6, 3))])
    state, metrics = jax.jit(learner.update)(
        state, metajax.Episode(batch, batch), jax.random.key(0)
    )
    count = state.inner_state.model["count"]
    assert {int(shard.data) for shard in count.addressable_shards} == {3}
    assert float(metrics["query"]["positive"]) == 0.25


def test_tasks_of_different_numbers_are_refused():
    mean = metajax.over_tasks(
        lambda shared, tasks, carry: (jnp.mean(tasks[0]), carry), task_chunk=2
    )
    with pytest.raises(ValueError, match="needs the same number of tasks"):
        mean((), (jnp.ones(4), jnp.ones(3)))
