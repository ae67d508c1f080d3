"""Few-shot classification by the papers' protocols, for the launchers of all data sets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax
from experiments import baselines, image_data, plots, protocols, skeleton, supervised, tables
from experiments.classification import HEADS, FewShot
from experiments.command import Command, Experiment, as_usage_error
from experiments.skeleton import Evaluation, Method
from metajax import data as datasets
from metajax import nn, train
from metajax.data import Splits
from metajax.tasks import meta_batch

QUESTIONS = ("transductive", "non_transductive")


DRAWINGS: dict[str, Any] = {
    "conv": nn.omniglot_conv,
    "conv_nichol": nn.omniglot_conv_nichol,
    "conv_per_step": nn.conv_per_step,
    "conv_pool": functools.partial(nn.ConvNet, pool="max", reduce="flatten", use_scale=True),
    "mlp": nn.omniglot_mlp,
    "resnet12": nn.resnet12,
}
PHOTOGRAPHS: dict[str, Any] = {
    **DRAWINGS,
    "conv": nn.mini_imagenet_conv,
    "conv_nichol": nn.mini_imagenet_conv_nichol,
    "conv_per_step": functools.partial(nn.conv_per_step, features=48),
}


def experiment(name: str, summary: str, presets: Any) -> Experiment:
    """A launcher of few-shot classification."""
    return Experiment(
        name,
        summary,
        presets,
        lambda command: skeleton.run(command, build),
        print_presets,
        protocols.BY_ALGORITHM,
        image_data.DataLaunch(),
        build,
    )


# Test tasks per compiled call; more need more memory.
TASKS_PER_CALL = 100


def make_network(settings: FewShot) -> Callable[[int], Any]:
    """The network for any number of classes, a Flax module."""
    networks = DRAWINGS if datasets.DATA_SETS[settings.dataset].drawings else PHOTOGRAPHS
    network = networks[settings.network]
    if settings.network == "conv_per_step":
        network = functools.partial(network, num_steps=settings.num_steps)
    reduced = settings.compute_dtype != "float32"
    dtype = jnp.dtype(settings.compute_dtype) if reduced else None
    return functools.partial(network, dtype=dtype)


def make_learner(settings: FewShot, loss: metajax.LossFn, mesh: Any = None) -> metajax.MetaLearner:
    """The meta-learner, whose inner loop treats normalizations as the settings say."""
    inner, head = supervised.make_inner_optimizer(settings), nn.is_head
    if not settings.adapt_norm and settings.algorithm != "anil":  # whose head has none
        inner = metajax.adapt_only(inner, lambda path: not nn.is_norm(path))
    if settings.network == "conv_per_step":
        inner = metajax.count_steps(inner, nn.is_step)
        if settings.algorithm == "anil":
            head = lambda path: nn.is_head(path) or nn.is_step(path)  # noqa: E731
    features = baselines.make_features(make_network(settings))
    return supervised.make_learner(settings, loss, mesh, inner=inner, head=head, features=features)


class Trained(NamedTuple):
    """A learner with its tasks and measurements.

    Attributes:
      learner: the meta-learner.
      params: the initial parameters.
      tasks: the training tasks.
      measure: `(state, validation tasks, rng) -> {"accuracy": ...}`.
      adapt: the inner loop of the meta-test.
      metrics: the accuracy for each of `QUESTIONS`.
      start: turns the chosen state into the state from which test tasks adapt.
    """

    learner: metajax.MetaLearner
    params: Any
    tasks: metajax.tasks.TaskDistribution
    measure: Callable[..., dict[str, Any]]
    adapt: metajax.Adapt
    metrics: dict[str, Any]
    start: Callable[[metajax.MetaState], metajax.MetaState] = lambda state: state


def meta_learning(command: Command, data: Splits) -> Trained:
    """Any of the meta-learning algorithms."""
    settings = command.settings
    model = make_network(settings)(settings.ways)
    loss = metajax.cross_entropy(model.apply)
    tasks = image_data.make_tasks(settings, data, "train")
    learner = make_learner(settings, loss, command.mesh)
    batches = supervised.make_batches(settings, settings.eval_inner_batch)
    adapt, validated = (
        learner.inner.rebuild(num_steps=steps, batches=batches)
        for steps in (settings.num_eval_steps, settings.validation_steps)
    )
    key = jax.random.key(settings.seed)
    return Trained(
        learner,
        model.init(jax.random.fold_in(key, 1), image_data.blank_image(data)),
        tasks,
        make_measure(settings, command.mesh, validated, metajax.accuracy(model.apply)),
        adapt,
        accuracies(model.apply),
    )


def closed_form(command: Command, data: Splits) -> Trained:
    """A head that the support determines, on learned features."""
    settings, head = command.settings, HEADS[command.settings.algorithm]()
    network = make_network(settings)
    features = baselines.make_features(network)
    learner = metajax.head_learner(
        features,
        head,
        supervised.make_outer_optimizer(settings),
        ways=settings.train_ways or settings.ways,
        task_chunk=settings.task_chunk or None,
        mesh=command.mesh,
    )
    adapt = metajax.closed_form(features, head, ways=settings.ways)
    metrics = accuracies(metajax.head_on(features, head))
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    return Trained(
        learner,
        network(settings.ways).init(key, image_data.blank_image(data)),
        image_data.make_tasks(settings, data, "train"),
        make_measure(settings, command.mesh, adapt, metrics["transductive"]),
        adapt,
        metrics,
    )


def baseline(command: Command, data: Splits) -> Trained:
    """A classifier of all meta-training classes, fine-tuned or with nearest neighbours."""
    settings, mesh = command.settings, command.mesh
    network = make_network(settings)
    everything, model = network(len(data.train)), network(settings.ways)
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    image = image_data.blank_image(data)
    learner = baselines.pretraining(
        metajax.cross_entropy(everything.apply), supervised.make_outer_optimizer(settings), mesh
    )
    params = everything.init(key, image)
    images, counts = jnp.asarray(data.train.array), jnp.asarray(data.train.counts)
    tasks = baselines.Classification(images, counts, settings.pretrain_batch)
    if settings.algorithm == "nearest_neighbour":
        features = baselines.make_features(network)
        metrics = {
            question: baselines.nearest_neighbour(features, transductive=transductive)
            for question, transductive in zip(QUESTIONS, (True, False), strict=True)
        }
        nothing = metajax.inner_loop(metajax.cross_entropy(everything.apply), optax.identity(), 0)
        return Trained(
            learner,
            params,
            tasks,
            make_measure(settings, mesh, nothing, metrics["transductive"]),
            nothing,
            metrics,
            lambda state: baselines.make_state(state.meta_params.params),
        )

    head = model.init(key, image)["params"]["head"]
    loss = metajax.cross_entropy(model.apply)
    metrics = accuracies(model.apply)
    measure_from = make_measure(
        settings,
        mesh,
        baselines.fine_tuning(loss, settings.validation_steps),
        metrics["transductive"],
    )

    def with_step_size(state, step_size):
        params = baselines.with_head(state.meta_params.params, head)
        return baselines.make_state(params, step_size)

    def measure(state, tasks, rng):
        return measure_from(with_step_size(state, settings.inner_learning_rate), tasks, rng)

    def start(state):
        validation = image_data.make_tasks(settings, data, "validation")
        score = jax.jit(
            lambda rate: measure_from(with_step_size(state, rate), validation, key)["accuracy"]
        )
        rate = baselines.best_step_size(lambda rate: float(score(rate)))
        print(f"fine-tuning with a step size of {rate}, the best on the meta-validation tasks")
        return with_step_size(state, rate)

    adapt = baselines.fine_tuning(loss, settings.num_eval_steps)
    return Trained(learner, params, tasks, measure, adapt, metrics, start)


def accuracies(apply: Callable[..., Any]) -> dict[str, Any]:
    """The accuracy for each of `QUESTIONS`."""
    return {
        "transductive": metajax.accuracy(apply),
        "non_transductive": metajax.accuracy(apply, transductive=False),
    }


def make_measure(
    settings: FewShot, mesh: Any, adapt: metajax.Adapt, metric: Any
) -> Callable[..., dict[str, Any]]:
    """The meta-validation: the accuracy after all steps of `adapt`."""
    last = metajax.AtSteps(metric, (adapt.num_steps,))

    def measure(state, tasks, rng):
        task_rng, rng = jax.random.split(rng)
        episodes = meta_batch(tasks, settings.validation_tasks, task_rng)
        scores = metajax.evaluate(adapt, last, state, episodes, rng, mesh=mesh)
        return {"accuracy": scores["mean"][0]}

    return measure


def build(command: Command) -> Method:
    """The method of a command."""
    settings = command.settings
    data = image_data.load(settings, command.launch.data_dir)
    test_tasks = image_data.make_tasks(settings, data, "test")
    makers = {**dict.fromkeys(HEADS, closed_form), **dict.fromkeys(protocols.BASELINES, baseline)}
    trained = makers.get(settings.algorithm, meta_learning)(command, data)
    leaks = image_data.look_for_leaks(command, data, trained.tasks, test_tasks)
    validation = None
    if settings.choose == "validation":
        validation_tasks = image_data.make_tasks(settings, data, "validation")
        validation = train.Validation(validation_tasks, trained.measure, "accuracy", "max")

    def rescore(state: metajax.MetaState) -> dict[str, Any]:
        start = trained.start(state)
        return {"accuracy": test(command, trained.metrics, trained.adapt, start, test_tasks)}

    def evaluate(fitted: train.FitResult) -> Evaluation:
        rows = rescore(fitted.best)["accuracy"]
        return Evaluation({"accuracy": rows}, describe(command, fitted, rows), {"audit": leaks})

    return Method(
        trained.learner,
        trained.params,
        trained.tasks,
        validation,
        evaluate,
        rescore,
        functools.partial(draw, command),
    )


def test(
    command: Command,
    metrics: dict[str, Any],
    adapt: metajax.Adapt,
    state: metajax.MetaState,
    tasks: metajax.tasks.TaskDistribution,
) -> dict[str, Any]:
    """Accuracy with and without transduction, on the same test tasks.

    The transductive accuracy is measured after every adaptation step. Without transduction every
    query is a batch of its own, which takes long, so that accuracy is measured before the first
    step, after it, after as many steps as the paper reports, and at the end.
    """
    settings = command.settings
    num_steps = adapt.num_steps
    few = sorted({min(s, num_steps) for s in (0, 1, settings.validation_steps, num_steps)})
    steps = {"transductive": list(range(num_steps + 1)), "non_transductive": few}
    score = train.scorer(
        adapt,
        {question: metajax.AtSteps(metrics[question], steps[question]) for question in metrics},
        tasks_per_call=TASKS_PER_CALL,
        mesh=command.mesh,
        progress="meta-test",
    )
    key = jax.random.fold_in(jax.random.key(settings.seed), 2)
    with as_usage_error():
        scores = score(state, tasks, settings.eval_tasks, key)
    return {
        question: {
            "steps": steps[question],
            "mean": scores["mean"][question].tolist(),
            "ci95": scores["ci95"][question].tolist(),
            "num_tasks": scores["num_tasks"],
        }
        for question in metrics
    }


def make_title(settings: FewShot) -> str:
    return (
        f"{settings.ways}-way {settings.shots}-shot {datasets.DATA_SETS[settings.dataset].title}, "
        f"{settings.algorithm}"
    )


def describe(command: Command, fitted: train.FitResult, rows: dict[str, Any]) -> str:
    """The accuracies, with those of the paper beside them."""
    settings = command.settings
    step = min(settings.validation_steps, rows["transductive"]["steps"][-1])
    # The paper's number is that of its own algorithm.
    paper = (
        {} if "algorithm" in command.overrides else protocols.PAPER_RESULTS.get(command.preset, {})
    )
    lines = [
        tables.by_step(
            f"{make_title(settings)}: accuracy (%) on {settings.eval_tasks} test tasks after each "
            "adaptation step",
            rows,
            scale=100,
        ),
        f"\nafter {step} steps, {fitted.state.step} of the meta-steps:",
    ]
    for question, row in rows.items():
        at = row["steps"].index(step)
        ours = f"{100 * row['mean'][at]:.2f} +- {100 * row['ci95'][at]:.2f}"
        theirs = tables.interval(paper.get(question))
        lines.append(
            f"{question.replace('_', '-'):17}{ours}" + (f", paper {theirs}" if theirs else "")
        )
    return "\n".join(lines)


def draw(command: Command, folder: Path, fitted: train.FitResult, evaluation: Evaluation) -> None:
    """The learning curve of adaptation and the training curve."""
    plots.adaptation_curves(
        folder / "learning_curve.png",
        evaluation.rows["accuracy"],
        ylabel="accuracy (%)",
        title=make_title(command.settings),
        scale=100,
    )
    plots.training_curve(
        folder / "training.png",
        skeleton.training_metrics(command),
        {
            "train/query/accuracy": "meta-training, query",
            "validation/accuracy": "meta-validation",
        },
        ylabel="accuracy (%)",
        scale=100,
    )


def print_presets(presets: Any) -> None:
    """Prints the presets with the papers' numbers."""
    rows = [("preset", "algorithm", "meta-steps", "paper: transductive", "non-transductive")]
    for name, settings in presets.items():
        paper = protocols.PAPER_RESULTS.get(name, {})
        numbers = [tables.interval(paper.get(question)) for question in QUESTIONS]
        rows.append((name, settings.algorithm, f"{settings.num_meta_steps:,}", *numbers))
    print(tables.aligned(rows))
