"""Tasks over the devices of a mesh: the same numbers, one all-reduce."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.machine import CPU_CHUNK_BYTES
from metajax.parallel import default_chunk
from tests.helpers import assert_close, mlp, mlp_loss, mlp_params, regression
from tests.test_learner import ALGORITHMS, BY_PLACE

EPISODES = regression(tasks=12, dtype=jnp.float32)
KEY = jax.random.key(7)
SGD = optax.sgd(0.1)


def updated(name, **kwargs):
    learner = ALGORITHMS[name](mlp_loss, optax.sgd(0.03, momentum=0.9), **kwargs)
    state = learner.init(mlp_params(dtype=jnp.float32))
    return jax.jit(learner.update)(state, EPISODES, KEY)


# Three tasks a device: a chunk of two, and a rest of one.
@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n not in BY_PLACE | {"reptile_serial"}])
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
    with pytest.raises(ValueError, match=r"such as task_mesh\(\), got 2"):
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
