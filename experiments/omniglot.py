"""Few-shot classification of Omniglot: Finn 2017, section 5.2, table 1; Nichol 2018, table 2.

Command:   python -m experiments.omniglot --preset=finn2017/omniglot_5w1s
Hardware:  2 CPU cores
Wall time: about 0.1 s a meta-step, so 1.5 to 2 hours for all 60,000
Expected:  98.7 +- 0.4 % (transductive) after 3 adaptation steps, the paper's
Ours:      benchmarks/results/omniglot_maml_5w1s/result.json, in the table of the README
"""

from __future__ import annotations

from typing import Any

import jax
from absl import flags

import metajax
from experiments import common, plots
from metajax import nn, train
from metajax.tasks import FewShot, meta_batch, omniglot

flags.adopt_module_key_flags(common)  # so that --help shows them
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps its data (default: as TFDS has it)."
)
flags.DEFINE_integer("ways", None, "Classes per task.", lower_bound=2)
flags.DEFINE_integer(
    "train_shots", None, "Support examples per class in training; 0: --shots.", lower_bound=0
)
flags.DEFINE_integer("eval_queries", None, "Query examples per class in evaluation.", lower_bound=1)
flags.DEFINE_integer("eval_inner_batch", None, "Like --inner_batch, in evaluation.", lower_bound=0)
NETWORKS = {
    "conv": nn.omniglot_conv,
    "conv_nichol": nn.omniglot_conv_nichol,
    "mlp": nn.omniglot_mlp,
}
flags.DEFINE_enum("network", None, list(NETWORKS), "A network of metajax.nn.")
flags.DEFINE_enum(
    "resample", None, ["lanczos", "nearest"], "How the drawings are made small; see omniglot.load."
)
flags.DEFINE_enum("split", None, ["finn", "vinyals"], "The split of the characters.")

VALIDATION_TASKS = 200
# Test tasks are adapted so many at a time, which bounds the memory of the evaluation.
EVALUATION_CHUNK = 50

FINN: common.Config = {
    **common.DEFAULTS,
    "split": "finn",
    "resample": "lanczos",
    "network": "conv",
    "num_meta_steps": 60_000,
    "train_shots": 0,
    "eval_inner_batch": 0,
    "task_chunk": 1,
    "steps_per_call": 50,
    "validate_every": 1_000,
    "checkpoint_every": 1_000,
}


def finn2017(ways: int, shots: int) -> common.Config:
    """A cell of table 1. The step size is on a mean loss: `ways` times the printed 0.4 or 0.1."""
    few = ways == 5
    return {
        **FINN,
        "ways": ways,
        "shots": shots,
        "queries": shots,
        "eval_queries": shots,
        "meta_batch_size": 32 if few else 16,
        "num_steps": 1 if few else 5,
        "validation_steps": 3 if few else 5,
        "inner_learning_rate": 2.0,
    }


PRESETS: common.Presets = {
    f"finn2017/omniglot_{ways}w{shots}s": finn2017(ways, shots)
    for ways in (5, 20)
    for shots in (1, 5)
}
BY_ALGORITHM: dict[str, common.Config] = {
    # Nichol 2018, table 3, for 5 ways.
    "reptile": {
        "network": "conv_nichol",
        "num_meta_steps": 100_000,
        "meta_batch_size": 5,
        "train_shots": 10,
        "queries": 1,
        "num_steps": 5,
        "inner_batch": 10,
        "inner_optimizer": "adam",
        "inner_learning_rate": 1e-3,
        "outer_optimizer": "sgd",
        "outer_learning_rate": 1.0,
        "carry": "mean",
        "task_chunk": 0,
        "validation_steps": 50,
        "num_eval_steps": 50,
        "eval_inner_batch": 5,
        "eval_queries": 1,
        "steps_per_call": 100,
        "validate_every": 5_000,
    },
    # Rajeswaran 2019, section 4.2.
    "imaml": {"num_steps": 16, "inner_learning_rate": 0.1, "num_eval_steps": 16},
    "anil": {"num_steps": 5, "inner_learning_rate": 0.5},
    "boil": {"inner_learning_rate": 0.5},
    "meta_sgd": {"inner_learning_rate": 0.5},
}


def main() -> None:
    if common.PRESET.value == "list":
        common.print_presets(
            PRESETS,
            ("algorithm", "ways", "shots", "num_meta_steps", "meta_batch_size", "num_steps"),
        )
        return
    settings = common.resolve("omniglot", PRESETS, "finn2017/omniglot_5w1s", BY_ALGORITHM)
    config, evaluation_settings, workdir = settings
    num_tasks, num_steps = evaluation_settings["eval_tasks"], evaluation_settings["num_eval_steps"]
    model = NETWORKS[config["network"]](config["ways"])
    loss = common.classification_loss(model.apply)
    with common.as_usage_error():
        data = omniglot.load(DATA_DIR.value, split=config["split"], resample=config["resample"])
        shots = config["train_shots"] or config["shots"]
        tasks = tasks_of(config, data.train, shots, config["queries"])
        validation_tasks, test_tasks = (
            tasks_of(config, images, config["shots"], config["eval_queries"])
            for images in (data.validation, data.test)
        )
        learner = common.learner(config, loss)
        adapt, validation_adapt = (
            common.inner_loop(config, loss, steps, config["eval_inner_batch"])
            for steps in (num_steps, config["validation_steps"])
        )
    key = jax.random.key(config["seed"])
    params = model.init(jax.random.fold_in(key, 1), tasks.sample(key).support[0])
    transductive, non_transductive = (
        metajax.accuracy(model.apply, transductive=flag) for flag in (True, False)
    )

    def measure(state, tasks, rng):
        scores = score(validation_adapt, transductive, state, tasks, rng, VALIDATION_TASKS)
        return {"accuracy": scores["mean"][-1]}

    fitted = common.fit_or_load(
        settings,
        learner,
        params,
        tasks,
        train.Validation(validation_tasks, measure, "accuracy", "max"),
    )
    if fitted is None:
        return

    evaluation = {}
    for name, metric in (("transductive", transductive), ("non_transductive", non_transductive)):

        @jax.jit
        def test(state, tasks, rng, metric=metric):
            return score(adapt, metric, state, tasks, rng, num_tasks)

        evaluation[name] = common.as_lists(
            test(fitted.best, test_tasks, jax.random.fold_in(key, 2))
        )
    common.write_result(settings, fitted, {"accuracy": evaluation})
    title = f"{config['ways']}-way {config['shots']}-shot Omniglot, {config['algorithm']}"
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
    common.print_table(
        f"{title}: accuracy (%) on {num_tasks} test tasks after each adaptation step",
        evaluation,
        scale=100,
    )
    print(
        f"\n{workdir / 'result.json'}, figures beside it; {fitted.wall_seconds:.0f} s of training"
    )


def tasks_of(config: common.Config, images: Any, shots: int, queries: int) -> FewShot:
    return FewShot(images, ways=config["ways"], shots=shots, queries=queries, rotate=True)


def score(adapt, metric, state, tasks, rng, num_tasks: int) -> dict[str, Any]:
    task_rng, rng = jax.random.split(rng)
    episodes = meta_batch(tasks, num_tasks, task_rng)
    return metajax.evaluate(adapt, metric, state, episodes, rng, task_chunk=EVALUATION_CHUNK)


if __name__ == "__main__":
    common.run(main)
