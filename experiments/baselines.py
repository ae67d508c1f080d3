"""The baselines of table 1 of Finn 2017, which start from a classifier of all training classes.

Both train one network with a head for all classes of meta-training, on single images. Fine-tuning
gives it a new head and adapts all parameters to the support. The nearest neighbour of a query is
the support image with the most similar features (by cosine), taken before the head. The numbers of
the paper are those of Ravi and Larochelle 2017 (section 5), who give no more detail.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import metajax
from metajax.base import Array, Key, Params

# The step size of fine-tuning is the best of these on meta-validation tasks.
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("images", "counts"), meta_fields=("batch_size",)
)
@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """Batches of single images of all classes, as "tasks" whose support is not used.

    Attributes:
      images: uint8 `[classes, examples, height, width, channels]`.
      counts: `[classes]`, the number of examples of each class, which come first.
      batch_size: images per batch.
    """

    images: Array
    counts: Array
    batch_size: int

    def sample(self, rng: Key) -> metajax.Episode:
        class_rng, example_rng = jax.random.split(rng)
        labels = jax.random.randint(class_rng, (self.batch_size,), 0, len(self.images))
        examples = jax.random.randint(example_rng, (self.batch_size,), 0, self.counts[labels])
        batch = self.images[labels, examples].astype(jnp.float32) / 255, labels
        return metajax.Episode(batch, batch)


def pretraining(
    loss: metajax.LossFn, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> metajax.MetaLearner:
    """Supervised learning: MAML with zero inner steps."""
    return metajax.maml(loss, optax.identity(), optimizer, num_steps=0, mesh=mesh)


def with_head(params: Params, head: Params) -> Params:
    """The same body with another head."""
    return {"params": {**params["params"], "head": head}}


def make_features(network: Callable[[int], Any]) -> Callable[[Params, Array], Array]:
    """`(params, x) -> features`, the input of the head, for any number of classes."""

    def features(params: Params, x: Array) -> Array:
        size = params["params"]["head"]["kernel"].shape[0]
        head = {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}
        return network(size).apply(with_head(params, head), x)

    return features


def nearest_neighbour(
    features: Callable[[Params, Array], Array], *, transductive: bool
) -> Callable[..., Array]:
    """The accuracy of the label of the nearest support image, by the cosine of features.

    Args:
      features: `(params, x [examples, ...]) -> [examples, features]`.
      transductive: whether batch statistics are of all queries, instead of the support and one.
    """

    def closest(references: Array, x: Array) -> Array:
        references /= jnp.linalg.norm(references, axis=-1, keepdims=True)
        return jnp.argmax(x @ references.T, axis=-1)

    def metric(params: Params, episode: metajax.Episode, rng: Key) -> Array:
        (support, labels), (query, truth) = episode

        def alone(x: Array) -> Array:
            both = features(params, jnp.concatenate([support, x[None]]))
            return closest(both[:-1], both[-1])

        if transductive:
            nearest = closest(features(params, support), features(params, query))
        else:
            nearest = jax.lax.map(alone, query)
        return jnp.mean((labels[nearest] == truth).astype(jnp.float32))

    return metric


def fine_tuning(loss: metajax.LossFn, num_steps: int) -> metajax.Adapt:
    """SGD on the whole support, with the step size as an argument of the compiled program."""
    step_size = metajax.LearnedOptimizer(lambda params: jnp.zeros(()), optax.sgd)
    return metajax.inner_loop(loss, step_size, num_steps)


def make_state(params: Params, step_size: float | None = None) -> metajax.MetaState:
    """A state for `metajax.evaluate`."""
    inner = () if step_size is None else jnp.asarray(step_size)
    return metajax.MetaState(metajax.MetaParams(params, inner), (), (), jnp.zeros((), jnp.int32))


def best_step_size(score: Callable[[float], float]) -> float:
    """The step size with the highest score."""
    scores = [score(rate) for rate in LEARNING_RATES]
    return LEARNING_RATES[int(np.argmax(np.nan_to_num(scores)))]
