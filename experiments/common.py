"""What the launchers share: flags, presets, the algorithms by name, the results of a run."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging
from jax.sharding import Mesh

import metajax
from metajax import train

ALGORITHMS = ("maml", "fomaml", "reptile", "imaml", "meta_sgd", "anil", "boil", "maml_plus_plus")
RL_ALGORITHMS = (
    "maml",
    "fomaml",
    "promp",
    "pretrain",
    "oracle",
    "random",
    "context",
    "reptile",
)

FIRST_ORDER = ("fomaml", "reptile")
BASELINES = ("fine_tuning", "nearest_neighbour")  # of classification, see `baselines`

Config = dict[str, Any]
Presets = Mapping[str, Config]

BY_PRESET = " (default: the preset's)"

MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train and evaluate, or only evaluate."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is written, and continued (default: a dated folder in runs/)."
)
PRESET = flags.DEFINE_string("preset", None, "Named settings; --preset=list prints them.")
flags.DEFINE_enum(
    "algorithm",
    None,
    list(dict.fromkeys(ALGORITHMS + BASELINES + RL_ALGORITHMS)),
    "The meta-learning algorithm" + BY_PRESET,
)
flags.DEFINE_integer("seed", None, "The root of all randomness" + BY_PRESET, lower_bound=0)
for _name, _help, _least in (
    ("num_meta_steps", "Meta-updates.", 1),
    ("meta_batch_size", "Tasks per meta-update.", 1),
    ("shots", "Support examples per task (regression) or class in training.", 1),
    ("queries", "Query examples per task (regression) or class in training.", 1),
    ("num_steps", "Adaptation steps in training.", 0),
    ("inner_batch", "Support examples per inner step; 0: all of them.", 0),
    ("annealed_updates", "Meta-updates until only the last step counts (maml_plus_plus).", 0),
    ("first_order_updates", "Meta-updates of first order at the start (maml_plus_plus).", 0),
    ("cg_steps", "Conjugate-gradient iterations (imaml).", 1),
    ("task_chunk", "Tasks per vmap; 0: as many as suit the device.", 0),
    ("eval_tasks", "Test tasks of the evaluation.", 1),
    ("num_eval_steps", "Adaptation steps of the evaluation.", 0),
    ("validation_steps", "Adaptation steps of the meta-validation.", 0),
    ("validation_tasks", "Tasks of the meta-validation.", 1),
    ("steps_per_call", "Meta-updates per compiled call and log line.", 1),
    ("validate_every", "Meta-updates between validations.", 1),
    ("checkpoint_every", "Meta-updates between checkpoints.", 1),
):
    flags.DEFINE_integer(_name, None, _help + BY_PRESET, lower_bound=_least)
for _name, _help in (
    (
        "inner_learning_rate",
        "Step size of the inner optimizer, on a mean loss. Finn 2017 prints it for classification "
        "on a loss that is a sum over classes: 2.0 is the printed 0.4 of 5 ways and 0.1 of 20 on "
        "Omniglot, 0.05 the printed 0.01 on Mini-ImageNet. Steps of Adam do not depend on that.",
    ),
    ("outer_learning_rate", "Step size of the outer optimizer."),
    ("outer_epsilon", "Epsilon of an outer Adam."),
    ("clip", "Bound on every entry of the meta-gradient, see --outer_loss; 0: none."),
    ("proximal", "Pull towards the initialization (imaml)."),
):
    flags.DEFINE_float(_name, None, _help + BY_PRESET, lower_bound=0.0)
flags.DEFINE_enum("inner_optimizer", None, ["sgd", "adam"], "Inner optimizer" + BY_PRESET)
flags.DEFINE_enum("outer_optimizer", None, ["sgd", "adam"], "Outer optimizer" + BY_PRESET)
flags.DEFINE_enum(
    "outer_schedule",
    None,
    ["constant", "linear", "cosine"],
    "The outer step size, or trust region, over the meta-updates: as it is, to 0, or to a hundredth"
    + BY_PRESET,
)
flags.DEFINE_enum(
    "carry",
    None,
    ["none", "mean", "serial"],
    "How the inner optimizer's state passes from task to task" + BY_PRESET,
)

flags.DEFINE_enum(
    "batches",
    None,
    ["cycle", "replacement"],
    "How --inner_batch examples are drawn: through all of them in turn, or anew" + BY_PRESET,
)
flags.DEFINE_enum(
    "tail",
    None,
    ["none", "shared", "separate"],
    "What the outer gradient of fomaml is: that of the query loss (none), or the last update, on a "
    "mini-batch of the support (shared) or on the query (separate)" + BY_PRESET,
)
NUM_DEVICES = flags.DEFINE_integer(
    "num_devices",
    1,
    "Devices that share the tasks, on a CPU as many threads; no number depends on it.",
    lower_bound=1,
)

# What most presets share; every key is a flag.
DEFAULTS: Config = {
    "algorithm": "maml",
    "seed": 0,
    "num_steps": 1,
    "inner_optimizer": "sgd",
    "outer_optimizer": "adam",
    "outer_learning_rate": 1e-3,
    "outer_epsilon": 1e-8,
    "outer_schedule": "constant",
    "clip": 0.0,
    "inner_batch": 0,
    "batches": "cycle",
    "tail": "none",
    "carry": "none",
    "annealed_updates": 0,
    "first_order_updates": 0,
    "cg_steps": 5,
    "proximal": 2.0,
    "task_chunk": 0,
    "eval_tasks": 600,
    "num_eval_steps": 10,
}
# These do not touch training: a finished run may be evaluated again with others.
EVALUATION = ("eval_tasks", "num_eval_steps")


class UsageError(ValueError):
    """The command cannot be carried out as given; the message is for the person who typed it."""


COUNTS = (
    "num_meta_steps",
    "meta_batch_size",
    "steps_per_call",
    "validate_every",
    "checkpoint_every",
)


@contextlib.contextmanager
def as_usage_error() -> Iterator[None]:
    """Turns what the library says of bad values into a message for the command line."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise UsageError(str(error)) from error


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags and runs `main`; what the user can mend is one message, not a traceback."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            _fail(" ".join(str(error).split()), 2)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax reports every file it renames
        if rest[1:]:
            _fail(f"unexpected argument {rest[1]!r}: flags are written --name=value.", 2)
        return rest

    def guarded(_: list[str]) -> int | None:
        try:
            return main()
        except (UsageError, train.WorkdirError, train.NonFiniteError) as error:
            _fail(str(error), 1)

    app.run(guarded, flags_parser=parse)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


class Settings(NamedTuple):
    """What a command asks for.

    Attributes:
      config: what decides the training, as written to `config.json`.
      evaluation: the number of test tasks and adaptation steps.
      workdir: where the run lives.
    """

    config: Config
    evaluation: Config
    workdir: Path


def resolve(
    experiment: str,
    presets: Presets,
    default: str,
    by_algorithm: Mapping[str, Config],
    algorithms: tuple[str, ...] = ALGORITHMS,
    evaluation_keys: tuple[str, ...] = EVALUATION,
) -> Settings:
    """Reads the flags.

    Args:
      experiment: the experiment's name.
      presets: complete configurations by name; every key that is also a flag can be overridden.
      default: the preset to use without `--preset`.
      by_algorithm: what changes in a preset when `--algorithm` names another algorithm.
      algorithms: those that the experiment knows.
      evaluation_keys: the entries of a preset that do not touch training.
    """
    if NUM_DEVICES.value > 1:
        # Once JAX has been used it has the devices it has, see `mesh`.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", NUM_DEVICES.value)
    train.provenance()
    given: Config = {
        name: flags.FLAGS[name].value
        for name in presets[default]
        if name in flags.FLAGS and flags.FLAGS[name].present
    }
    existing = _existing(experiment) if MODE.value == "eval" else {}
    name = existing.get("preset", PRESET.value or default)
    if PRESET.value not in (None, name):
        raise UsageError(
            f"--mode=eval keeps the configuration of the run, which has --preset={name}: leave out "
            "--preset."
        )
    if name not in presets:
        raise UsageError(f"--preset={name} is unknown; --preset=list prints the presets.")
    preset = presets[name]
    config = dict(preset)
    algorithm = {**preset, **given, **existing}["algorithm"]
    if algorithm not in algorithms:
        raise UsageError(f"--algorithm={algorithm}: {experiment} has {', '.join(algorithms)}.")
    if algorithm != preset["algorithm"]:
        config |= {"algorithm": algorithm} | by_algorithm.get(algorithm, {})
    config |= given
    evaluation = {key: config.pop(key) for key in evaluation_keys}
    if existing:
        changed = [key for key in given if key in existing and given[key] != existing[key]]
        if changed:
            raise UsageError(
                "--mode=eval keeps the configuration of the run: leave out "
                + ", ".join(f"--{key}" for key in changed)
                + "."
            )
        return Settings(existing, evaluation, Path(WORKDIR.value or ""))
    # The length of a run is no override: it has an entry of its own in the record, and may grow.
    overrides = sorted(
        key for key in config if config[key] != preset[key] and key != "num_meta_steps"
    )
    config = {"experiment": experiment, "preset": name, "overrides": overrides, **config}
    if config["algorithm"] in ("reptile", "imaml") and config["num_steps"] == 0:
        raise UsageError(f"--num_steps=0: {config['algorithm']} needs at least one step.")
    tail = config.get("tail", "none")
    if tail != "none" and (config["algorithm"] != "fomaml" or config["num_steps"] == 0):
        raise UsageError(f"--tail={tail} is for fomaml with at least one step.")
    with as_usage_error():  # before data are loaded
        train.check_counts(**{name: config[name] for name in COUNTS})
    shared = ["meta_batch_size", "eval_tasks"]
    if config.get("choose", "validation") == "validation":
        shared.append("validation_tasks")
    for name in shared:
        count = {**config, **evaluation}.get(name, 0)
        if count % NUM_DEVICES.value:
            raise UsageError(
                f"--{name}={count}: {NUM_DEVICES.value} devices cannot share so many tasks "
                f"equally; make it a multiple of {NUM_DEVICES.value}, or change --num_devices."
            )
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    workdir = Path(WORKDIR.value or f"runs/{experiment}-{config['algorithm']}-{now}")
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file: name a directory.")
    return Settings(config, evaluation, workdir)


def _existing(experiment: str) -> Config:
    if WORKDIR.value is None:
        raise UsageError("--mode=eval needs --workdir, the directory of the run to evaluate.")
    with as_usage_error():
        config = train.read_config(Path(WORKDIR.value))
    if config.get("experiment") != experiment:
        raise UsageError(
            f"--workdir={WORKDIR.value} is of the experiment {config.get('experiment')}."
        )
    return config


def mesh() -> Mesh | None:
    """The devices of `--num_devices`; `None` for a single one."""
    if NUM_DEVICES.value == 1:
        return None
    with as_usage_error():
        return metajax.task_mesh(NUM_DEVICES.value)


def print_presets(presets: Presets, columns: tuple[str, ...]) -> None:
    """Prints the presets as a table."""
    width = max(map(len, presets))
    print("  ".join([f"{'preset':{width}}", *columns]))
    for name, config in presets.items():
        cells = [f"{config[column]!s:{len(column)}}" for column in columns]
        print("  ".join([f"{name:{width}}", *cells]).rstrip())


def is_head(path: tuple[Any, ...]) -> bool:
    """Whether a parameter belongs to the last linear layer, which all models call `head`."""
    return "['head']" in jax.tree_util.keystr(path)


def is_norm(path: tuple[Any, ...]) -> bool:
    """Whether a parameter belongs to a batch normalization."""
    return "['BatchNorm" in jax.tree_util.keystr(path)


def is_step(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is the inner step of a network that is another at every step."""
    return jax.tree_util.keystr(path).endswith("['step']")


def inner_optimizer(config: Config) -> Any:
    """The configured inner optimizer: learned or not, of all parameters or some."""
    algorithm, rate = config["algorithm"], config["inner_learning_rate"]
    first_order = algorithm in FIRST_ORDER
    optimizer: optax.GradientTransformation | metajax.LearnedOptimizer
    if config["inner_optimizer"] == "adam":
        # The authors of Reptile use beta1 = 0; eps_root makes the update differentiable.
        optimizer = optax.adam(rate, b1=0.0, eps_root=0.0 if first_order else 1e-8)
    else:
        optimizer = optax.sgd(rate)
    norm, per_step = config.get("adapt_norm", True), config.get("network") == "conv_per_step"
    if algorithm == "imaml" and (per_step or not norm):
        raise UsageError("imaml adapts all parameters: --adapt_norm, and no --network per step.")
    if algorithm in ("meta_sgd", "maml_plus_plus"):
        if config["inner_optimizer"] != "sgd":
            raise UsageError(f"--inner_optimizer: {algorithm} is SGD with learned step sizes.")
        optimizer = metajax.learned_step_sizes(rate)
    if algorithm == "maml_plus_plus":
        optimizer = metajax.learned_per_step_sizes(rate, max(config["num_steps"], 1))
    if algorithm == "anil":
        optimizer = metajax.adapting(optimizer, is_head)
    elif algorithm == "boil" or not norm:
        body_only = algorithm == "boil"
        optimizer = metajax.adapting(
            optimizer,
            lambda path: not (body_only and is_head(path)) and (norm or not is_norm(path)),
        )
    if per_step:
        optimizer = metajax.counting(optimizer, is_step)
    return optimizer


def batches(config: Config, inner_batch: int) -> Any:
    """What an inner step sees of the support."""
    if not inner_batch:
        return metajax.full_batch()
    choice = metajax.cycle if config["batches"] == "cycle" else metajax.replacement
    return choice(inner_batch)


def inner_loop(
    config: Config, loss: metajax.LossFn, num_steps: int, inner_batch: int
) -> metajax.Adapt:
    """The configured adaptation, with the steps and batches of training or of evaluation."""
    algorithm, carry = config["algorithm"], config["carry"]
    # Both exact. Of several steps the first keeps the parameters only, which for convolutions takes
    # less time as well.
    meta_gradient = metajax.mixed_mode() if num_steps > 1 else metajax.second_order()
    proximal = 0.0
    if algorithm in FIRST_ORDER:
        meta_gradient = metajax.first_order()
    elif algorithm == "imaml" and num_steps:
        meta_gradient, proximal = (
            metajax.implicit(cg_steps=config["cg_steps"]),
            config["proximal"],
        )
    return metajax.inner_loop(
        loss,
        inner_optimizer(config),
        num_steps,
        meta_gradient=meta_gradient,
        proximal=proximal,
        batches=batches(config, inner_batch),
        carry=None if carry == "none" else carry,
    )


def learner(config: Config, loss: metajax.LossFn) -> metajax.MetaLearner:
    """The configured meta-learner."""
    if config["algorithm"] in BASELINES:
        raise UsageError(f"--algorithm={config['algorithm']} is for presets of Mini-ImageNet.")
    num_steps, inner_batch = config["num_steps"], config["inner_batch"]
    if config["algorithm"] == "maml_plus_plus":
        return metajax.maml_plus_plus(
            loss,
            inner_optimizer(config),
            outer_optimizer(config),
            num_steps=num_steps,
            annealed_updates=config["annealed_updates"],
            first_order_updates=config["first_order_updates"],
            batches=batches(config, inner_batch),
            task_chunk=config["task_chunk"] or None,
            mesh=mesh(),
        )
    measured = loss if config["queries"] else None
    if config["algorithm"] == "reptile":
        objective = metajax.displacement(measured)
    elif config["tail"] == "separate":
        # The tail is the last of the steps.
        num_steps -= 1
        objective = metajax.last_update(measured, tail=inner_loop(config, loss, 1, 0))
    elif config["tail"] == "shared":
        objective = metajax.last_update(measured)
    else:
        objective = metajax.query_loss(loss)
    return metajax.meta_learner(
        inner_loop(config, loss, num_steps, inner_batch),
        objective,
        outer_optimizer(config),
        task_chunk=config["task_chunk"] or None,
        mesh=mesh(),
    )


def outer_schedule(config: Config, value: float) -> float | optax.Schedule:
    """`value` over the meta-updates, as `--outer_schedule` says."""
    if config["outer_schedule"] == "linear":
        return optax.linear_schedule(value, 0.0, config["num_meta_steps"])
    if config["outer_schedule"] == "cosine":
        return optax.cosine_decay_schedule(value, config["num_meta_steps"], alpha=0.01)
    return value


def outer_optimizer(config: Config) -> optax.GradientTransformation:
    """The configured outer step, on the gradient of the mean of the tasks' mean losses."""
    rate, before = outer_schedule(config, config["outer_learning_rate"]), []
    if config.get("outer_loss") == "sum":
        before.append(optax.scale(config["ways"] * config["queries"] / config["shots"]))
    if config["clip"]:
        before.append(optax.clip(config["clip"]))
    if config["outer_optimizer"] == "adam":
        step = optax.adam(rate, eps=config["outer_epsilon"])
    else:
        step = optax.sgd(rate)
    return optax.chain(*before, step) if before else step


def classification_loss(apply: Callable[..., Any]) -> metajax.LossFn:
    """The mean cross-entropy of `apply(params, x) -> logits`, with the accuracy beside it."""

    def loss(params, batch, rng):
        x, labels = batch
        logits = apply(params, x)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        hits = jnp.argmax(logits, axis=-1) == labels
        return value, {"accuracy": jnp.mean(hits.astype(jnp.float32))}

    return loss


def squared_error(apply: Callable[..., Any]) -> metajax.LossFn:
    """The mean squared error of `apply(params, x)`."""

    def loss(params, batch, rng):
        x, y = batch
        return jnp.mean((apply(params, x) - y) ** 2), {}

    return loss


def fit_or_load(
    settings: Settings,
    learner: metajax.MetaLearner,
    params: Any,
    tasks: metajax.tasks.TaskDistribution,
    validation: train.Validation | None,
) -> train.FitResult | None:
    """Trains, continues or (`--mode=eval`) only reads a run; `None` if it was told to stop."""
    config, _, workdir = settings
    if MODE.value == "eval":
        with as_usage_error():
            checkpoint = train.load(workdir, learner, params)
        record = checkpoint.record
        if int(checkpoint.state.step) < config["num_meta_steps"]:
            print(f"the run is unfinished: {checkpoint.state.step} meta-steps so far.")
        return train.FitResult(
            checkpoint.state,
            checkpoint.best,
            record["best_step"],
            record["best_metrics"],
            record["seconds"],
            None,
        )
    print(f"workdir: {workdir}", flush=True)
    result = train.fit(
        learner,
        params,
        tasks,
        key=jax.random.key(config["seed"]),
        num_meta_steps=config["num_meta_steps"],
        meta_batch_size=config["meta_batch_size"],
        validation=validation,
        workdir=workdir,
        config=config,
        steps_per_call=config["steps_per_call"],
        validate_every=config["validate_every"],
        checkpoint_every=config["checkpoint_every"],
        mesh=mesh(),
    )
    if result.stopped_by:
        print(
            f"stopped by {result.stopped_by} after {int(result.state.step)} meta-steps, which are "
            f"saved: repeat the command with --workdir={workdir} to continue."
        )
        return None
    return result


def as_lists(evaluation: dict[str, Any]) -> dict[str, Any]:
    """One metric's `{"mean", "ci95", "num_tasks"}` as JSON data."""
    return {
        "mean": evaluation["mean"].tolist(),
        "ci95": evaluation["ci95"].tolist(),
        "num_tasks": int(evaluation["num_tasks"]),
    }


def command(config: Config, evaluation: Config) -> str:
    """The command that repeats a run, wherever its data and its workdir lie."""
    flags_ = {"preset": config["preset"], "num_meta_steps": config["num_meta_steps"]}
    flags_ |= {name: config[name] for name in config["overrides"] if name in flags.FLAGS}
    flags_ |= evaluation
    if NUM_DEVICES.value > 1:
        flags_["num_devices"] = NUM_DEVICES.value
    words = [f"--{name}={value}" for name, value in flags_.items()]
    return " ".join(["python -m", f"experiments.{config['experiment']}", *words])


def write_result(
    settings: Settings,
    fitted: train.FitResult,
    evaluation: Mapping[str, Any],
    **extra: Any,
) -> None:
    """Writes `result.json`."""
    config, settings_of_evaluation, workdir = settings
    train.write_json(
        workdir / "result.json",
        {
            "experiment": config["experiment"],
            "algorithm": config["algorithm"],
            "preset": config["preset"],
            "config": {**train.read_config(workdir), **settings_of_evaluation},
            "command": command(config, settings_of_evaluation),
            "meta_steps": int(fitted.state.step),
            "best_step": fitted.best_step,
            "validation": fitted.best_metrics,
            "wall_seconds": fitted.wall_seconds,
            "num_devices": NUM_DEVICES.value,
            "trained_on": _trained_on(workdir),
            **extra,
            **train.provenance(),
            "evaluation": evaluation,
        },
    )


def _trained_on(workdir: Path) -> dict[str, Any]:
    """The devices that the wall time is of; an evaluation elsewhere does not change them."""
    here = {"num_devices": NUM_DEVICES.value, "device": train.provenance()["device"]}
    path = workdir / "result.json"
    if MODE.value == "train" or not path.exists():
        return here
    earlier = json.loads(path.read_text())
    return earlier.get("trained_on", {key: earlier.get(key, here[key]) for key in here})


def print_table(title: str, rows: Mapping[str, Mapping[str, Any]], *, scale: float = 1.0) -> None:
    """Prints evaluations, one row each, and eleven evenly spaced adaptation steps.

    A row with `steps` has entries for these only.
    """
    width = max(map(len, rows))
    by_step = {
        name: dict(zip(row.get("steps", range(len(row["mean"]))), row["mean"], strict=True))
        for name, row in rows.items()
    }
    last = max(map(max, by_step.values()))
    sparse = {step for row in by_step.values() if len(row) <= last for step in row}
    steps = sorted({round(last * i / 10) for i in range(11)} | sparse)
    print(f"\n{title}")
    print(" " * width + "".join(f"{step:>9}" for step in steps))
    for name, row in by_step.items():
        cells = [f"{scale * row[step]:>9.3g}" if step in row else " " * 9 for step in steps]
        print(f"{name:{width}}" + "".join(cells).rstrip())
