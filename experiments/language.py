"""Language models that learn from what they read: test-time training end to end.

Tandon et al., 2025, https://arxiv.org/abs/2512.23675: a decoder with a short window takes a
gradient step on every chunk of its context, and its initialization is meta-learned for that.

Command:   python -m experiments.language --preset=ttt
Hardware:  1 CPU core
Expected:  a loss that falls with the position in the context, beyond the window
Ours:      benchmarks/results/language, and docs/results.md
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import decoder, plots, skeleton, supervised, tables, text
from experiments.command import Command, Experiment, as_usage_error, run
from experiments.settings import Launch, Training, UsageError, setting
from experiments.skeleton import Evaluation, Method
from metajax import train
from metajax.tasks import meta_batch


class Reading(NamedTuple):
    """How a model reads its context.

    Attributes:
      engine: how the meta-gradient crosses an inner step per chunk; `None` for no inner steps.
      whole: whether the model attends to all of the context instead of a window.
    """

    engine: metajax.MetaGradient | None = None
    whole: bool = False


ALGORITHMS = {
    "ttt": Reading(metajax.second_order()),
    "ttt_first_order": Reading(metajax.first_order()),
    "window": Reading(),
    "full": Reading(whole=True),
}
LEARNS = tuple(name for name, reading in ALGORITHMS.items() if reading.engine)
WINDOWS = tuple(name for name, reading in ALGORITHMS.items() if not reading.whole)
# Dynamic evaluation: the inner step size of a model that was trained without inner steps.
DYNAMIC_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


@dataclasses.dataclass(frozen=True)
class Text(Launch):
    """Where the text is."""

    data_dir: str | None = setting(
        None,
        "A folder of text files, or one file, which is cut into documents of 64 KiB; by default "
        "the sources of Python's standard library.",
    )


@dataclasses.dataclass(frozen=True)
class Language(Training):
    """Language modelling."""

    algorithm: str = setting(
        "ttt",
        "A window of two chunks with an inner step per chunk, meta-learned exactly (ttt) or to "
        "first order; without inner steps (window); attention to all of the context (full).",
        choices=tuple(ALGORITHMS),
    )
    num_chunks: int = setting(16, "Chunks of a context that are predicted.", least=1)
    chunk: int = setting(32, "Bytes per chunk.", least=1)
    blocks: int = setting(4, "Blocks of the decoder.", least=1)
    width: int = setting(96, "Features of the decoder.", least=2)
    heads: int = setting(4, "Attention heads.", least=1)
    adapting_blocks: int = setting(
        1,
        "Last blocks whose feed-forward layers take the inner steps.",
        least=1,
        only={"algorithm": WINDOWS},
    )
    adapters: int = setting(
        0,
        "The rank of low-rank adapters beside these layers, which take the inner steps in their "
        "place; 0: no adapters.",
        least=0,
        only={"algorithm": WINDOWS},
    )
    inner_learning_rate: float = setting(
        0.1, "Step size of the inner SGD.", least=0.0, only={"algorithm": LEARNS}
    )
    # There is a step per chunk, in training as in tests.
    num_steps: int = setting(0, "See num_chunks.", shown=False)
    validation_steps: int = setting(0, "See num_chunks.", shown=False)
    num_eval_steps: int = setting(0, "See num_chunks.", shown=False, evaluation=True)
    clip: float = setting(1.0, "Bound on the norm of the meta-gradient; 0: none.", least=0.0)
    validation_tasks: int = setting(64, "Contexts of the meta-validation.", least=1)

    def unused(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield "there is a step per chunk", ("num_steps", "validation_steps", "num_eval_steps")
        yield from super().unused()

    def check(self) -> None:
        super().check()
        if self.width % (2 * self.heads):
            raise UsageError(f"--width={self.width} must be a multiple of twice --heads.")
        if self.adapting_blocks > self.blocks:
            raise UsageError(f"--adapting_blocks is more than the {self.blocks} --blocks.")


TTT = Language(
    num_meta_steps=500,
    meta_batch_size=8,
    outer_learning_rate=2e-3,
    outer_schedule="cosine",
    steps_per_call=10,
    validate_every=100,
    checkpoint_every=50,
    eval_tasks=512,
)
LORA: dict[str, Any] = {"adapters": 8, "inner_learning_rate": 1.0}
PRESETS = {
    "ttt": TTT,
    "ttt_first_order": dataclasses.replace(TTT, algorithm="ttt_first_order"),
    "ttt_lora": dataclasses.replace(TTT, **LORA),
    "window": dataclasses.replace(TTT, algorithm="window"),
    "full": dataclasses.replace(TTT, algorithm="full"),
}


def is_adapting(settings: Language) -> Callable[[Any], bool]:
    """`parameter path -> whether the inner steps change it`."""
    first = settings.blocks - settings.adapting_blocks
    blocks = {f"block_{i}" for i in range(first, settings.blocks)}

    def where(path: Any) -> bool:
        names = {str(getattr(key, "key", key)) for key in path}
        adapter = bool(names & {"lora_down", "lora_up"})
        inside = bool(names & blocks) and bool(names & {"up", "down"})
        return inside and adapter == bool(settings.adapters)

    return where


def byte_losses(model: Any, params: Any, tokens: jax.Array, predicted: int) -> jax.Array:
    """The losses in nats of the last bytes `[..., predicted]` of tokens `[..., bytes]`."""
    tokens = tokens.astype(jnp.int32)
    logits = model.apply(params, tokens[..., :-1])[..., -predicted:, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[..., -predicted:])


def build(command: Command) -> Method:
    """The method of a command."""
    settings: Language = command.settings
    how, chunk, num_chunks = ALGORITHMS[settings.algorithm], settings.chunk, settings.num_chunks
    model = decoder.Decoder(
        settings.blocks,
        settings.width,
        settings.heads,
        settings.adapters,
        settings.adapting_blocks,
    )
    with as_usage_error():
        corpus = text.read(command.launch.data_dir)
        tasks, validation, test = (text.Contexts.of(s, chunk, num_chunks) for s in corpus)
    check_same(command, corpus.describe())
    key = jax.random.key(settings.seed)
    params = model.init(jax.random.fold_in(key, 1), jnp.zeros((1, 1), jnp.int32))

    def chunk_loss(params, tokens, rng):
        return jnp.mean(byte_losses(model, params, tokens, chunk)), {}

    def by_chunk(params, context):
        """The loss of each chunk `[num_chunks]` without inner steps."""
        if how.whole:
            losses = byte_losses(model, params, context, num_chunks * chunk)
            return jnp.mean(losses.reshape(num_chunks, chunk), axis=1)
        return jnp.mean(byte_losses(model, params, text.chunks(context, chunk), chunk), axis=1)

    def context_loss(params, context, rng):
        return jnp.mean(by_chunk(params, context)), {}

    def reading(optimizer, engine=None):
        """An inner loop with a step after every chunk."""
        return metajax.inner_loop(
            chunk_loss,
            metajax.adapt_only(optimizer, is_adapting(settings)),
            num_chunks,
            batches=metajax.per_step(),
            meta_gradient=engine,
        )

    adapt = metajax.inner_loop(chunk_loss, optax.identity(), 0)
    objective: metajax.Objective = metajax.query_loss(context_loss)
    found: Any = metajax.AtSteps(lambda p, e, _: jnp.mean(by_chunk(p, e.query)), (0,))
    if how.engine:
        adapt = reading(optax.sgd(settings.inner_learning_rate), how.engine)
        objective = metajax.online_loss()
        found = metajax.OfAdaptation(lambda info: jnp.mean(info.loss)[None])
    rate = supervised.make_schedule(settings, settings.outer_learning_rate)
    outer = optax.adam(rate)
    if settings.clip:
        outer = optax.chain(optax.clip_by_global_norm(settings.clip), outer)
    learner = metajax.meta_learner(
        adapt, objective, outer, task_chunk=settings.task_chunk or None, mesh=command.mesh
    )

    # The step size is an argument of the compiled program, which then serves for all of them.
    at_rate = reading(metajax.LearnedOptimizer(lambda params: jnp.zeros(()), optax.sgd))
    metric = {
        "online": metajax.OfAdaptation(lambda info: curve(info.loss)),
        "still": metajax.AtSteps(lambda p, e, _: curve(by_chunk(p, e.query)), (0,)),
    }
    score = train.scorer(at_rate, metric, tasks_per_call=32, mesh=command.mesh)

    def scored(state, tasks, count, rate, rng):
        start = metajax.MetaParams(state.meta_params.params, jnp.float32(rate))
        return score(start, tasks, count, rng)

    def measure(state, tasks, rng):
        task_rng, rng = jax.random.split(rng)
        episodes = meta_batch(tasks, settings.validation_tasks, task_rng)
        start = state.meta_params
        scores = metajax.evaluate(adapt, found, start, episodes, rng, mesh=command.mesh)
        return {"loss": scores["mean"][0]}

    def rescore(state: metajax.MetaState) -> dict[str, Any]:
        count, rng = settings.eval_tasks, jax.random.fold_in(key, 2)
        own = scored(state, test, count, settings.inner_learning_rate, rng)
        rows = {"without inner steps": as_rows(own, "still")}
        if how.engine:
            rows = {"with inner steps": as_rows(own, "online"), **rows}
        elif not how.whole:

            def mean_loss(rate):
                scores = scored(state, validation, settings.validation_tasks, rate, rng)
                return np.nan_to_num(np.mean(scores["mean"]["online"]["loss"]), nan=np.inf)

            best = min(DYNAMIC_RATES, key=mean_loss)
            dynamic = scored(state, test, count, best, rng)
            rows["dynamic evaluation"] = {**as_rows(dynamic, "online"), "rate": best}
        return {"loss": rows}

    def evaluate(fitted: train.FitResult) -> Evaluation:
        rows = rescore(fitted.best)["loss"]
        return Evaluation({"loss": rows}, describe(settings, rows), {"corpus": corpus.describe()})

    return Method(
        learner,
        params,
        tasks,
        train.Validation(validation, measure, "loss", "min"),
        evaluate,
        rescore,
        partial(draw, command),
        progress_metric="loss",
    )


def check_same(command: Command, found: dict[str, Any]) -> None:
    """Keeps the digest of the text in the workdir, and raises an error for another text."""
    path = command.workdir / "corpus.json"
    if path.exists():
        if train.read_json(path) != found:
            raise UsageError(f"the text is not that of the run, which {path} describes.")
    elif not command.evaluates_only and train.is_first():
        train.write_json(path, found)


def curve(losses: jax.Array) -> dict[str, jax.Array]:
    """The losses by chunk, their mean and how much the last quarter is below the first chunk.

    The first chunk is predicted before any step, with a full window.
    """
    quarter = max(len(losses) // 4, 1)
    return {
        "loss": losses,
        "mean_loss": jnp.mean(losses),
        "fall": losses[0] - jnp.mean(losses[-quarter:]),
    }


def as_rows(scores: Any, which: str) -> dict[str, Any]:
    """The scores of one way to read as JSON data."""
    mean, half_width = (scores[each][which] for each in ("mean", "ci95"))
    return {
        name: {
            "mean": np.ravel(mean[name]).tolist(),
            "ci95": np.ravel(half_width[name]).tolist(),
            "num_tasks": int(scores["num_tasks"]),
        }
        for name in mean
    }


def describe(settings: Language, rows: dict[str, Any]) -> str:
    """The losses by position, for the console."""
    title = f"{settings.algorithm}: nats per byte by chunk, {settings.eval_tasks} unseen contexts"
    lines = [tables.by_step(title, {name: row["loss"] for name, row in rows.items()})]
    for name, row in rows.items():
        values = [
            f"{row[each]['mean'][0]:.3f} +- {row[each]['ci95'][0]:.3f}"
            for each in ("mean_loss", "fall")
        ]
        lines.append(
            f"{name}: mean {values[0]}, from the first chunk to the last quarter a fall "
            f"of {values[1]}"
        )
    return "\n".join(lines)


def draw(command: Command, folder: Path, fitted: train.FitResult, evaluation: Evaluation) -> None:
    """The loss by position, and the training curve."""
    settings: Language = command.settings
    rows = {name: row["loss"] for name, row in evaluation.rows["loss"].items()}
    plots.adaptation_curves(
        folder / "by_position.png",
        rows,
        ylabel="nats per byte",
        title=f"{settings.algorithm}, {settings.eval_tasks} unseen contexts",
        xlabel=f"position in the context, in chunks of {settings.chunk} bytes",
    )
    plots.training_curve(
        folder / "training.png",
        skeleton.training_metrics(command),
        {"train/objective": "meta-training", "validation/loss": "meta-validation"},
        ylabel="nats per byte",
    )


COLUMNS = ("algorithm", "num_meta_steps", "meta_batch_size", "num_chunks", "chunk", "adapters")
EXPERIMENT = Experiment(
    "language",
    "Language models that learn from what they read: test-time training end to end.",
    PRESETS,
    lambda command: skeleton.run(command, build),
    lambda presets: print(tables.presets(presets, COLUMNS)),
    launch=Text(),
    build=build,
)

if __name__ == "__main__":
    run(EXPERIMENT)
