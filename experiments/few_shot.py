"""Few-shot classification by the papers' protocols: what the launchers of the data sets share."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

import metajax
from experiments import baselines, common, plots, protocols
from metajax import nn, train
from metajax.tasks import audit, cifar, meta_batch, mini_imagenet, omniglot, place
from metajax.train.workdir import claim

flags.adopt_module_key_flags(common)  # so that --help shows them
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where the data are: those of TensorFlow Datasets (default: $TFDS_DATA_DIR, or as TFDS has "
    "it), or Mini-ImageNet (default: $MINI_IMAGENET_DIR or ~/mini-imagenet).",
)
flags.DEFINE_integer("ways", None, "Classes per task.", lower_bound=2)
flags.DEFINE_integer(
    "train_shots", None, "Support examples per class in training; 0: --shots.", lower_bound=0
)
flags.DEFINE_integer("eval_queries", None, "Query examples per class in evaluation.", lower_bound=1)
flags.DEFINE_integer("eval_inner_batch", None, "Like --inner_batch, in evaluation.", lower_bound=0)
flags.DEFINE_integer(
    "pretrain_batch", None, "Images per batch of the baselines' classifier.", lower_bound=1
)
flags.DEFINE_enum("train_on", None, ["train", "train+validation"], "The classes of meta-training.")
flags.DEFINE_enum(
    "choose",
    None,
    ["validation", "last"],
    "Which state is tested: the best on the meta-validation classes, or the last.",
)
flags.DEFINE_enum(
    "rotation",
    None,
    ["none", "task", "classes"],
    "Quarter turns: none; of every class, drawn anew for each task, in testing too; or as classes "
    "of their own in training, which makes four of one.",
)
flags.DEFINE_bool("invert", None, "Whether the ink of a drawing is bright, 1 on paper of 0.")
flags.DEFINE_enum(
    "resample", None, ["lanczos", "nearest"], "How the drawings are made small; see omniglot.load."
)
flags.DEFINE_enum(
    "split",
    None,
    ["finn", "vinyals", "cifar_fs", "fc100"],
    "The split of the classes: the first two are of Omniglot, the others of CIFAR-100.",
)
flags.DEFINE_enum(
    "network",
    None,
    ["conv", "conv_nichol", "conv_per_step", "mlp", "resnet12"],
    "The convolutions of Finn 2017 for the data set; those of Nichol 2018, of another head and "
    "normalization; those of MAML++, with a normalization for every inner step; 256-128-64-64; or "
    "12 residual convolutions.",
)
flags.DEFINE_bool(
    "adapt_norm", None, "Whether the inner loop adapts the parameters of batch normalizations."
)
flags.DEFINE_enum(
    "outer_loss",
    None,
    ["mean", "sum"],
    "The query loss whose gradient is clipped and seen by the outer optimizer: the mean, or the "
    "sum over the query divided by the shots, which is Finn 2017's.",
)
flags.DEFINE_enum(
    "compute_dtype", None, ["float32", "bfloat16"], "What the hidden layers compute in."
)

QUESTIONS = ("transductive", "non_transductive")
NETWORKS: dict[str, dict[str, Any]] = {
    "omniglot": {
        "conv": nn.omniglot_conv,
        "conv_nichol": nn.omniglot_conv_nichol,
        "conv_per_step": nn.conv_per_step,
        "mlp": nn.omniglot_mlp,
        "resnet12": nn.resnet12,
    },
    "mini_imagenet": {
        "conv": nn.mini_imagenet_conv,
        "conv_nichol": nn.mini_imagenet_conv_nichol,
        "conv_per_step": functools.partial(nn.conv_per_step, features=48),
        "mlp": nn.omniglot_mlp,
        "resnet12": nn.resnet12,
    },
}
NETWORKS["cifar"] = NETWORKS["mini_imagenet"]
TITLES = {"omniglot": "Omniglot", "mini_imagenet": "Mini-ImageNet", "cifar": "CIFAR-100"}

# Test tasks that are sampled and adapted by one compiled call, which bounds the memory.
TASKS_PER_CALL = 100
AUDITED_TASKS = 100


class Data(NamedTuple):
    """A data set as a protocol sees it.

    Attributes:
      train, validation, test: uint8 `[classes, examples, height, width, channels]`.
      names: of the classes, by set.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    names: dict[str, tuple[str, ...]]


def load(config: common.Config) -> Data:
    """Reads the data and applies what the protocol does to them once for all."""
    with common.as_usage_error():
        if config["dataset"] == "omniglot":
            loaded: Any = omniglot.load(
                DATA_DIR.value, split=config["split"], resample=config["resample"]
            )
        elif config["dataset"] == "cifar":
            loaded = cifar.load(DATA_DIR.value, split=config["split"])
        else:
            loaded = mini_imagenet.load(DATA_DIR.value)
    images = {part: getattr(loaded, part) for part in ("train", "validation", "test")}
    names = {part: getattr(loaded, f"{part}_names") for part in images}
    if config["train_on"] == "train+validation":
        if config["choose"] == "validation":
            raise common.UsageError(
                "--choose=validation needs classes that are not trained on: use --choose=last "
                "or --train_on=train."
            )
        images["train"] = np.concatenate([images["train"], images["validation"]])
        names["train"] += names["validation"]
        images["validation"], names["validation"] = images["validation"][:0], ()
    if not config.get("invert", True):
        images = {part: 255 - of_part for part, of_part in images.items()}
    if config["rotation"] == "classes":
        images["train"] = np.concatenate(
            [np.rot90(images["train"], turns, axes=(2, 3)) for turns in range(4)]
        )
        names["train"] = tuple(
            f"{name} turned by {90 * turns}" for turns in range(4) for name in names["train"]
        )
    return Data(**images, names=names)


def tasks_of(config: common.Config, data: Data, part: str) -> metajax.tasks.TaskDistribution:
    """The tasks of `"train"`, `"validation"` or `"test"`."""
    shots, queries = config["shots"], config["eval_queries"]
    if part == "train":
        shots, queries = config["train_shots"] or shots, config["queries"]
    with common.as_usage_error():
        return place(
            getattr(data, part),
            ways=config["ways"],
            shots=shots,
            queries=queries,
            rotate=config["rotation"] == "task",
        )


def network_of(config: common.Config) -> Callable[[int], Any]:
    """The configured network for any number of classes, a Flax module."""
    network = NETWORKS[config["dataset"]][config["network"]]
    if config["network"] == "conv_per_step":
        network = functools.partial(network, num_steps=config["num_steps"])
    reduced = config["compute_dtype"] != "float32"
    dtype = jnp.dtype(config["compute_dtype"]) if reduced else None
    return functools.partial(network, dtype=dtype)


class Method(NamedTuple):
    """What is trained, and how it is judged.

    Attributes:
      learner: the meta-learner.
      params: what it starts from.
      tasks: what it learns from.
      measure: `(state, validation tasks, rng) -> {"accuracy": ...}`.
      adapt: the adaptation of the meta-test.
      metrics: accuracy by question, see `QUESTIONS`.
      tested: the state that is tested, of the one that was chosen.
    """

    learner: metajax.MetaLearner
    params: Any
    tasks: metajax.tasks.TaskDistribution
    measure: Callable[..., dict[str, Any]]
    adapt: metajax.Adapt
    metrics: dict[str, Any]
    tested: Callable[[metajax.MetaState], metajax.MetaState] = lambda state: state


def meta_learning(settings: common.Settings, data: Data) -> Method:
    """Any of the meta-learning algorithms."""
    config, evaluation_settings, _ = settings
    model = network_of(config)(config["ways"])
    loss = common.classification_loss(model.apply)
    tasks = tasks_of(config, data, "train")
    with common.as_usage_error():
        learner = common.learner(config, loss)
        adapt, validation_adapt = (
            common.inner_loop(config, loss, steps, config["eval_inner_batch"])
            for steps in (evaluation_settings["num_eval_steps"], config["validation_steps"])
        )
    key = jax.random.key(config["seed"])
    return Method(
        learner,
        model.init(jax.random.fold_in(key, 1), image_of(data)),
        tasks,
        measure_with(config, validation_adapt, metajax.accuracy(model.apply)),
        adapt,
        accuracies(model),
    )


def baseline(settings: common.Settings, data: Data) -> Method:
    """A classifier of all meta-training classes, fine-tuned or with nearest neighbours."""
    config, evaluation_settings, _ = settings
    network = network_of(config)
    everything, model = network(len(data.train)), network(config["ways"])
    key = jax.random.fold_in(jax.random.key(config["seed"]), 1)
    image = image_of(data)
    learner = baselines.pretraining(config, common.classification_loss(everything.apply))
    params = everything.init(key, image)
    tasks = baselines.Classification(jnp.asarray(data.train), config["pretrain_batch"])
    if config["algorithm"] == "nearest_neighbour":
        features = baselines.features_of(network)
        metrics = {
            question: baselines.nearest_neighbour(features, transductive=transductive)
            for question, transductive in zip(QUESTIONS, (True, False), strict=True)
        }
        nothing = metajax.inner_loop(
            common.classification_loss(everything.apply), optax.identity(), 0
        )
        return Method(
            learner,
            params,
            tasks,
            measure_with(config, nothing, metrics["transductive"]),
            nothing,
            metrics,
            lambda state: baselines.state_of(state.meta_params.params),
        )

    head = model.init(key, image)["params"]["head"]
    loss = common.classification_loss(model.apply)
    metrics = accuracies(model)
    measure_at = measure_with(
        config, baselines.fine_tuning(loss, config["validation_steps"]), metrics["transductive"]
    )

    def started(state, step_size):
        params = baselines.with_head(state.meta_params.params, head)
        return baselines.state_of(params, step_size)

    def measure(state, tasks, rng):
        return measure_at(started(state, config["inner_learning_rate"]), tasks, rng)

    def tested(state):
        validation = tasks_of(config, data, "validation")
        score = jax.jit(lambda rate: measure_at(started(state, rate), validation, key)["accuracy"])
        rate = baselines.best_step_size(lambda rate: float(score(rate)))
        print(f"fine-tuning with a step size of {rate}, the best on the meta-validation tasks")
        return started(state, rate)

    adapt = baselines.fine_tuning(loss, evaluation_settings["num_eval_steps"])
    return Method(learner, params, tasks, measure, adapt, metrics, tested)


def accuracies(model: Any) -> dict[str, Any]:
    """The accuracy by question."""
    return {
        "transductive": metajax.accuracy(model.apply),
        "non_transductive": metajax.accuracy(model.apply, transductive=False),
    }


def image_of(data: Data) -> jax.Array:
    """One image, by whose shape a network is initialized."""
    return jnp.zeros((1, *data.train.shape[2:]))


def measure_with(
    config: common.Config, adapt: metajax.Adapt, metric: Any
) -> Callable[..., dict[str, Any]]:
    """The meta-validation: the accuracy after `validation_steps`, all of `adapt`."""
    last = metajax.AtSteps(metric, (config["validation_steps"],))
    num_tasks, mesh = config["validation_tasks"], common.mesh()

    def measure(state, tasks, rng):
        task_rng, rng = jax.random.split(rng)
        episodes = meta_batch(tasks, num_tasks, task_rng)
        scores = metajax.evaluate(adapt, last, state, episodes, rng, mesh=mesh)
        return {"accuracy": scores["mean"][0]}

    return measure


def run(family: str, default: str) -> None:
    """Trains and tests what the flags ask for: the `main` of a launcher.

    Args:
      family: a key of `protocols.PRESETS`, and the launcher's name.
      default: the preset to use without `--preset`.
    """
    presets = protocols.PRESETS[family]
    if common.PRESET.value == "list":
        print_presets(presets)
        return
    settings = common.resolve(
        family,
        presets,
        default,
        protocols.BY_ALGORITHM[family],
        (*common.ALGORITHMS, *common.BASELINES),
    )
    config, _, workdir = settings
    check_inner_batches(config)
    if common.MODE.value != "eval" and (workdir / "config.json").exists():
        claim(workdir, config)  # before anything is written to another run's
    data = load(config)
    test_tasks = tasks_of(config, data, "test")
    make = baseline if config["algorithm"] in common.BASELINES else meta_learning
    method = make(settings, data)
    leaks = look_for_leaks(settings, data, method.tasks, test_tasks)
    validation = None
    if config["choose"] == "validation":
        validation_tasks = tasks_of(config, data, "validation")
        validation = train.Validation(validation_tasks, method.measure, "accuracy", "max")
    fitted = common.fit_or_load(settings, method.learner, method.params, method.tasks, validation)
    if fitted is None:
        return

    start = time.monotonic()
    state = method.tested(fitted.best)
    evaluation = test(settings, method.metrics, method.adapt, state, test_tasks)
    common.write_result(
        settings,
        fitted,
        {"accuracy": evaluation},
        evaluation_seconds=time.monotonic() - start,
        audit=leaks,
    )
    report(settings, fitted, evaluation)


def check_inner_batches(config: common.Config) -> None:
    """Refuses inner batches that are larger than the support which they are drawn from."""
    shots = {"inner_batch": config["train_shots"] or config["shots"]}
    shots["eval_inner_batch"] = config["shots"]
    for name, per_class in shots.items():
        support = config["ways"] * per_class
        if config[name] > support:
            raise common.UsageError(
                f"--{name}={config[name]} is more than the {support} examples of a support set."
            )


def test(
    settings: common.Settings,
    metrics: dict[str, Any],
    adapt: metajax.Adapt,
    state: metajax.MetaState,
    tasks: metajax.tasks.TaskDistribution,
) -> dict[str, Any]:
    """Accuracy with and without transduction, on the same test tasks.

    Transductive after every adaptation step. Without transduction every query is a batch of its
    own, which is too much work for all of them: before the first step, after it, after those the
    paper reports, and at the end.
    """
    config, evaluation_settings, _ = settings
    num_tasks, num_steps = evaluation_settings["eval_tasks"], evaluation_settings["num_eval_steps"]
    few = sorted({min(s, num_steps) for s in (0, 1, config["validation_steps"], num_steps)})
    steps = {"transductive": list(range(num_steps + 1)), "non_transductive": few}
    steps = {question: steps[question] for question in metrics}
    at_steps = {question: metajax.AtSteps(metrics[question], steps[question]) for question in steps}
    mesh = common.mesh()
    if mesh is not None:
        state, tasks = jax.device_put((state, tasks), NamedSharding(mesh, PartitionSpec()))

    @functools.partial(jax.jit, static_argnames="count")
    def score(state, tasks, rng, *, count):
        task_rng, rng = jax.random.split(rng)
        episodes = meta_batch(tasks, count, task_rng)
        return metajax.evaluate(adapt, at_steps, state, episodes, rng, mesh=mesh)

    key = jax.random.fold_in(jax.random.key(config["seed"]), 2)
    per_call = -(-TASKS_PER_CALL // common.NUM_DEVICES.value) * common.NUM_DEVICES.value
    scores = []
    for call in tqdm(range(-(-num_tasks // per_call)), "meta-test", disable=None):
        count = min(per_call, num_tasks - call * per_call)
        with common.as_usage_error():
            scores.append(
                jax.device_get(score(state, tasks, jax.random.fold_in(key, call), count=count))
            )
    return {
        question: {"steps": steps[question], **pooled([_of(s, question) for s in scores])}
        for question in metrics
    }


def _of(scores: dict[str, Any], metric: str) -> dict[str, Any]:
    return {**scores, "mean": scores["mean"][metric], "ci95": scores["ci95"][metric]}


def pooled(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and interval over all tasks of several evaluations, as JSON data."""
    counts = np.asarray([score["num_tasks"] for score in scores], np.float64)[:, None]
    means = np.asarray([score["mean"] for score in scores], np.float64)
    variances = (np.asarray([score["ci95"] for score in scores], np.float64) / 1.96) ** 2 * counts
    total = counts.sum()
    mean = (counts * means).sum(axis=0) / total
    variance = (counts * (variances + (means - mean) ** 2)).sum(axis=0) / total
    return {
        "mean": mean.tolist(),
        "ci95": (1.96 * np.sqrt(variance / total)).tolist(),
        "num_tasks": int(total),
    }


def look_for_leaks(
    settings: common.Settings, data: Data, tasks: Any, test_tasks: Any
) -> dict[str, Any]:
    """Audits splits and episodes; refuses to go on where test classes would have been trained on.

    The audit is kept beside the run, so that a run that is continued or evaluated again with
    another split of the classes is found out.
    """
    config, _, workdir = settings
    drawings = config["dataset"] == "omniglot"
    splits = {part: (getattr(data, part), names) for part, names in data.names.items() if names}
    found = audit.audit(splits, rotations=drawings)
    key = jax.random.fold_in(jax.random.key(config["seed"]), 3)
    found["episodes"] = {
        "test": audit.audit_episodes(test_tasks, key, AUDITED_TASKS, rotations=drawings)
    }
    if config["algorithm"] not in common.BASELINES:  # these do not learn from episodes
        found["episodes"]["train"] = audit.audit_episodes(tasks, key, AUDITED_TASKS)
    path = workdir / "audit.json"
    if path.exists():
        changed = audit.changed_classes(json.loads(path.read_text()), found)
        if changed:
            raise common.UsageError(
                f"the classes of {', '.join(changed)} are not those that {path} says the run was "
                "trained with: testing would be on classes that were trained on. Use the same data."
            )
    else:
        train.write_json(path, found)
    if not found["disjoint"]["classes"]:
        raise common.UsageError(f"the sets share classes: {found['shared_classes']}.")
    if not found["disjoint"]["images"]:
        across = [
            f"{pairs['count']} of {' and '.join(pairs['splits'])}"
            for pairs in found["identical_images"]
            if len({*pairs["splits"]}) > 1
        ]
        print(f"identical images in two sets of classes: {', '.join(across)} (audit.json)")
    return found


def report(settings: common.Settings, fitted: train.FitResult, evaluation: dict[str, Any]) -> None:
    """Draws the figures and prints our numbers beside the paper's."""
    config, evaluation_settings, workdir = settings
    title = (
        f"{config['ways']}-way {config['shots']}-shot {TITLES[config['dataset']]}, "
        f"{config['algorithm']}"
    )
    plots.adaptation_curves(
        workdir / "learning_curve.png", evaluation, ylabel="accuracy", title=title
    )
    plots.training_curve(
        workdir / "training.png",
        train.read_metrics(workdir),
        {
            "train/query/accuracy": "meta-training, query",
            "validation/accuracy": "meta-validation",
        },
        ylabel="accuracy",
    )
    num_tasks = evaluation_settings["eval_tasks"]
    common.print_table(
        f"{title}: accuracy (%) on {num_tasks} test tasks after each adaptation step",
        evaluation,
        scale=100,
    )
    step = min(config["validation_steps"], evaluation_settings["num_eval_steps"])
    paper = protocols.PAPER_RESULTS.get(config["preset"], {})
    print(f"\nafter {step} steps, {fitted.state.step} of the meta-steps:")
    for question, row in evaluation.items():
        at = row["steps"].index(step)
        ours = f"{100 * row['mean'][at]:.2f} +- {100 * row['ci95'][at]:.2f}"
        theirs = interval(paper.get(question))
        print(f"{question.replace('_', '-'):17}{ours}" + (f", paper {theirs}" if theirs else ""))
    print(
        f"\n{workdir / 'result.json'}, figures beside it; {fitted.wall_seconds:.0f} s of training"
    )


def interval(cell: list[float | None] | None) -> str:
    """A cell of a paper's table: percent and, where it is given, the half-width of the interval."""
    if cell is None:
        return ""
    value, half_width = cell
    return f"{value:g}" if half_width is None else f"{value:g} +- {half_width:g}"


def print_presets(presets: common.Presets) -> None:
    """Prints the presets with the papers' numbers."""
    rows = [("preset", "algorithm", "meta-steps", "paper: transductive", "non-transductive")]
    for name, config in presets.items():
        paper = protocols.PAPER_RESULTS.get(name, {})
        numbers = [interval(paper.get(question)) for question in QUESTIONS]
        rows.append((name, config["algorithm"], f"{config['num_meta_steps']:,}", *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())
