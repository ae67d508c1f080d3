"""Regression of sine waves: Finn 2017, section 5.1, figures 2, 3 and 6; Nichol 2018, section 4.

Command:   python -m experiments.sinusoid
Hardware:  2 CPU cores
Wall time: about 1 minute, 40 s of it meta-training
Expected:  10-shot mean squared error of 0.35 or less after 1 step and 0.13 or less after 10
Ours:      benchmarks/results/sinusoid_maml/result.json, in the table of the README
"""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import metajax
from experiments import common, plots
from metajax import nn, train
from metajax.tasks import Sinusoid, meta_batch

flags.adopt_module_key_flags(common)  # so that --help shows them

SHOTS = (5, 10, 20)
GRID_POINTS = 200
BASELINES = ("pretrained", "random")
# Figures 2 and 3 of Finn 2017: the baselines are fine-tuned with a step size of their own, the best
# of these on the meta-validation tasks.
BASELINE_LEARNING_RATES = (0.001, 0.003, 0.01, 0.02, 0.05)
VALIDATION_TASKS = 500

FINN: common.Config = {
    **common.DEFAULTS,
    "paper": "finn2017",
    "num_meta_steps": 70_000,
    "meta_batch_size": 25,
    "shots": 10,
    "queries": 10,
    "inner_learning_rate": 0.01,
    "validation_steps": 10,
    "steps_per_call": 1_000,
    "validate_every": 2_000,
    "checkpoint_every": 10_000,
}
REPTILE: common.Config = {
    "algorithm": "reptile",
    "num_meta_steps": 30_000,
    "meta_batch_size": 5,
    "shots": 50,
    "queries": 50,
    "num_steps": 5,
    "inner_batch": 10,
    "inner_learning_rate": 0.02,
    "outer_optimizer": "sgd",
    "outer_schedule": "linear",
    "outer_learning_rate": 0.1,
    "carry": "none",
}
PRESETS: common.Presets = {
    "finn2017": FINN,
    "nichol2018": {**FINN, **REPTILE, "paper": "nichol2018"},
}
BY_ALGORITHM: dict[str, common.Config] = {
    "reptile": REPTILE,
    "imaml": {"num_steps": 10, "inner_learning_rate": 0.05},
    # The features that a sine wave needs are not in the head alone: more steps, larger ones.
    "anil": {"num_steps": 5, "inner_learning_rate": 0.05},
}


def tasks_of(config: common.Config, **settings: Any) -> Sinusoid:
    preset = Sinusoid.finn2017 if config["paper"] == "finn2017" else Sinusoid.nichol2018
    return preset(**settings)


def main() -> None:
    if common.PRESET.value == "list":
        common.print_presets(
            PRESETS, ("algorithm", "num_meta_steps", "meta_batch_size", "shots", "num_steps")
        )
        return
    settings = common.resolve("sinusoid", PRESETS, "finn2017", BY_ALGORITHM)
    config, evaluation_settings, workdir = settings
    num_tasks, num_steps = evaluation_settings["eval_tasks"], evaluation_settings["num_eval_steps"]
    model = nn.sinusoid_mlp() if config["paper"] == "finn2017" else nn.sinusoid_mlp_nichol()
    loss = common.squared_error(model.apply)
    with common.as_usage_error():
        tasks = tasks_of(config, shots=config["shots"], queries=config["queries"], query_grid=False)
        learner = common.learner(config, loss)
        adapt = common.inner_loop(config, loss, num_steps, 0)
        validation_adapt = common.inner_loop(config, loss, config["validation_steps"], 0)
    key = jax.random.key(config["seed"])
    params = model.init(jax.random.fold_in(key, 1), jnp.zeros((1, 1)))

    def measure(state, tasks, rng):
        # Good after one step and after many, with few points and with more: the mean over all.
        errors = []
        for shots in SHOTS:
            task_rng, rng = jax.random.split(jax.random.fold_in(rng, shots))
            episodes = meta_batch(
                dataclasses.replace(tasks, shots=shots), VALIDATION_TASKS, task_rng
            )
            scores = metajax.evaluate(
                validation_adapt, metajax.mse(model.apply), state, episodes, rng
            )
            errors.append(jnp.mean(scores["mean"][min(1, config["validation_steps"]) :]))
        return {"mse": jnp.mean(jnp.stack(errors))}

    validation_tasks = tasks_of(config, shots=10, queries=GRID_POINTS, query_grid=True)
    validation = train.Validation(validation_tasks, measure, "mse", "min")
    fitted = common.fit_or_load(settings, learner, params, tasks, validation)
    if fitted is None:
        return

    models = {config["algorithm"]: Model(adapt, fitted.best, model.apply)}
    # One step size, an argument of the compiled program rather than a constant in it.
    fine_tune = metajax.inner_loop(
        loss, metajax.LearnedOptimizer(lambda params: jnp.zeros(()), optax.sgd), num_steps
    )
    baseline = Model(
        fine_tune, metajax.maml(loss, optax.identity(), optax.identity()).init(params), model.apply
    )
    for name, start in (("pretrained", pretrain(config, loss, params, tasks)), ("random", params)):
        models[name] = tuned(baseline, start, validation_tasks, jax.random.fold_in(key, 4))
    evaluation = evaluate(config, num_tasks, models, jax.random.fold_in(key, 2))
    rates = {name: float(models[name].state.meta_params.inner) for name in BASELINES}
    common.write_result(settings, fitted, {"mse": evaluation}, baseline_learning_rates=rates)
    draw(settings, models, evaluation, jax.random.fold_in(key, 3))
    common.print_table(
        f"mean squared error on {num_tasks} unseen tasks after each adaptation step", evaluation
    )
    print(
        f"\n{workdir / 'result.json'}, figures beside it; {fitted.wall_seconds:.0f} s of training"
    )


class Model:
    """A state, how it adapts, and its compiled evaluation."""

    def __init__(self, adapt: metajax.Adapt, state: metajax.MetaState, apply):
        self.adapt, self.state, self.apply = adapt, state, apply
        self._score = jax.jit(partial(metajax.evaluate, adapt, metajax.mse(apply)))

    def start(self, meta_params: metajax.MetaParams) -> Model:
        """The same model from another start, sharing what is compiled."""
        other = copy.copy(self)
        other.state = self.state._replace(meta_params=meta_params)
        return other

    def score(self, episodes: metajax.Episode, rng) -> dict[str, Any]:
        return self._score(self.state, episodes, rng)


def pretrain(config: common.Config, loss: metajax.LossFn, params: Any, tasks: Sinusoid) -> Any:
    """Joint training on all tasks at once: the same learner with zero inner steps."""
    adapt = metajax.inner_loop(loss, optax.identity(), 0)
    learner = metajax.meta_learner(adapt, metajax.query_loss(loss), optax.adam(1e-3))
    fitted = train.fit(
        learner,
        params,
        tasks,
        key=jax.random.key(config["seed"] + 1),
        num_meta_steps=config["num_meta_steps"],
        meta_batch_size=config["meta_batch_size"],
        steps_per_call=config["steps_per_call"],
        show_progress=False,
    )
    return fitted.state.meta_params.params


def tuned(model: Model, params: Any, tasks: Sinusoid, key) -> Model:
    """The model fine-tuned from `params`, with the step size that is best on `tasks`."""
    task_rng, rng = jax.random.split(key)
    episodes = meta_batch(tasks, VALIDATION_TASKS, task_rng)

    def at(rate: float) -> Model:
        return model.start(metajax.MetaParams(params, jnp.asarray(rate)))

    def final_error(rate: float) -> float:
        error = float(at(rate).score(episodes, rng)["mean"][-1])
        return error if np.isfinite(error) else np.inf

    return at(min(BASELINE_LEARNING_RATES, key=final_error))


def evaluate(config, num_tasks: int, models: dict[str, Model], key) -> dict[str, Any]:
    """Scores every model with 5, 10 and 20 support points on the same unseen tasks."""
    rows = {}
    for label, model in models.items():
        for shots in SHOTS:
            tasks = tasks_of(config, shots=shots, queries=GRID_POINTS, query_grid=True)
            task_rng, rng = jax.random.split(jax.random.fold_in(key, shots))
            episodes = meta_batch(tasks, num_tasks, task_rng)
            name = f"K={shots}" if label not in BASELINES else f"{label} K={shots}"
            rows[name] = common.as_lists(model.score(episodes, rng))
    return rows


def draw(settings: common.Settings, models: dict[str, Model], evaluation, key) -> None:
    """Figures 2 and 3 of Finn 2017, and the training curve."""
    config, evaluation_settings, workdir = settings
    num_steps = evaluation_settings["num_eval_steps"]
    steps = sorted({0, min(1, num_steps), num_steps})
    half = tasks_of(
        config, shots=5, queries=GRID_POINTS, query_grid=True, support_range=(-5.0, 0.0)
    )
    episodes = meta_batch(half, 3, key)
    (support_x, support_y), (x, truth) = jax.tree.map(np.asarray, episodes)
    predictions = {}
    for label in (config["algorithm"], "pretrained"):
        model = models[label]

        def predict(support, rng, model=model):
            return model.adapt.apply(
                model.state.meta_params,
                support,
                rng,
                inner_state=model.state.inner_state,
                probe=lambda params, step: model.apply(params, x[0]),
            )[1].probe

        curves = jax.jit(jax.vmap(predict))(episodes.support, jax.random.split(key, 3))
        predictions[label] = {step: np.asarray(curves[:, step, :, 0]) for step in steps}
    plots.regression_tasks(
        workdir / "adaptation.png",
        x[0, :, 0],
        truth[..., 0],
        (support_x[..., 0], support_y[..., 0]),
        predictions,
    )
    ten = {config["algorithm"]: evaluation["K=10"]}
    ten |= {name: evaluation[f"{name} K=10"] for name in BASELINES}
    plots.adaptation_curves(
        workdir / "learning_curve.png",
        ten,
        ylabel="mean squared error",
        title="10-shot sinusoid regression",
    )
    plots.training_curve(
        workdir / "training.png",
        train.read_metrics(workdir),
        {"train/query_loss": "meta-training, query", "validation/mse": "meta-validation"},
        ylabel="mean squared error",
    )


if __name__ == "__main__":
    common.run(main)
