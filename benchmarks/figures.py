"""The papers' figures, each with all of its methods, from the records of runs.

Command: python -m benchmarks.figures

Writes figures 3, 4, 5 and 6 of Finn 2017 and figure 1 of Nichol 2018 to `benchmarks/figures`. Solid
lines are records, averaged over their seeds; dashed ones are what the authors published. A panel
without a record shows the paper's lines alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

import metajax
from benchmarks import report, rl_runs, runs, verify
from benchmarks.results_folder import RESULTS
from experiments import plots
from metajax import nn
from metajax.train.weights import load_state

FOLDER = Path(__file__).parent / "figures"
# The rows of an evaluation of sine waves: the run's own, and its baselines.
SINE_WAVES = {"MAML": "", "pretrained": "pretrained ", "random": "random ", "oracle": "oracle "}
METHODS = {"maml": "MAML", "pretrain": "pretrained", "random": "random", "oracle": "oracle"}
COLORS = dict(zip(METHODS.values(), plots.COLORS, strict=False))
STEPS = 32  # of Nichol's figure 1


def draw_steps(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]], label: str) -> None:
    """Mean against adaptation steps, with the range over seeds or the interval over tasks."""
    means = np.array([row["mean"] for row in rows])
    mean = means.mean(axis=0)
    spread = np.ptp(means, axis=0) / 2 if len(rows) > 1 else np.array(rows[0]["ci95"])
    if len(mean) == 1:  # it does not adapt
        axes.axhline(mean[0], color=COLORS[name], label=label)
        return
    steps = np.arange(len(mean))
    axes.plot(steps, mean, color=COLORS[name], marker="o", markersize=3, label=label)
    axes.fill_between(steps, mean - spread, mean + spread, color=COLORS[name], alpha=0.2)


def draw_paper(axes: Axes, name: str, returns: Sequence[float]) -> None:
    """What the authors published, dashed."""
    label = f"{name}, the paper"
    if len(returns) == 1:
        axes.axhline(returns[0], color=COLORS[name], linestyle="--", label=label)
    else:
        axes.plot(returns, color=COLORS[name], linestyle="--", label=label)


def sine_waves(results: Sequence[runs.Result], shots: Sequence[int], path: Path) -> None:
    """Squared error against gradient steps: Finn 2017, figures 3 and 6."""
    found = [r for r in results if r["name"].startswith("sinusoid/finn2017/maml/")]
    figure, panels = plt.subplots(
        1, len(shots), figsize=(3.2 * len(shots) + 0.6, 3.2), sharey=True, squeeze=False
    )
    for axes, count in zip(panels[0], shots, strict=True):
        for name, prefix in SINE_WAVES.items():
            rows = [run["evaluation"]["mse"][f"{prefix}K={count}"] for run in found]
            draw_steps(axes, name, rows, name)
        axes.set(title=f"{count} points", xlabel="gradient steps", yscale="log")
    panels[0][0].set_ylabel("mean squared error")
    panels[0][-1].legend()
    plots.save(figure, path)


def returns(results: Sequence[runs.Result], tasks: Mapping[str, str], path: Path) -> None:
    """Return against gradient steps, a panel for each task: Finn 2017, figures 4 and 5."""
    columns = min(len(tasks), 2)
    lines = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(6.4 * columns, 2.8 * lines + 0.3), squeeze=False
    )
    for axes, (task, experiment) in zip(grid.flat, tasks.items(), strict=True):
        for algorithm, name in METHODS.items():
            if chosen := longest(results, experiment, task, algorithm):
                rows = [run["evaluation"]["return"] for run in chosen]
                draw_steps(axes, name, rows, label(name, chosen))
            if algorithm in rl_runs.PAPER_RETURNS[task]:
                draw_paper(axes, name, rl_runs.PAPER_RETURNS[task][algorithm])
        axes.set(title=task.replace("_", " "), xlabel="gradient steps", ylabel="return")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    plots.save(figure, path)


def label(name: str, group: Sequence[runs.Result]) -> str:
    """A method with the preset, the seeds and the length of its runs."""
    first = group[0]
    name = "first-order MAML" if first["algorithm"] == "fomaml" else name
    words = [name, first["preset"], f"{first['meta_steps']} meta-steps", f"{len(group)} seeds"]
    return ", ".join(words[: 4 if len(group) > 1 else 3] if first["meta_steps"] else words[:1])


def longest(
    results: Sequence[runs.Result], experiment: str, task: str, algorithm: str
) -> list[runs.Result]:
    """The seeds of a method's runs: the paper's settings first, then the longest; or none."""
    wanted = ("maml", "fomaml") if algorithm == "maml" else (algorithm,)
    groups = [
        group
        for group in runs.by_seeds(r for r in results if r["experiment"] == experiment)
        if group[0]["algorithm"] in wanted and group[0]["config"].get("task", task) == task
    ]

    def place(group: list[runs.Result]) -> tuple[Any, ...]:
        first = group[0]
        faithful = first["preset"] == "finn2017"
        changes = len(set(first["config"]["overrides"]) - {"algorithm", "num_steps"})
        return first["algorithm"] != "fomaml", faithful, -changes, first["meta_steps"], len(group)

    return max(groups, key=place, default=[])


def one_sine_wave(path: Path) -> None:
    """The fits of three initializations to ten points: Nichol 2018, figure 1."""
    model = nn.sinusoid_mlp()
    grid = jnp.linspace(-5.0, 5.0, 100)[:, None]
    x = jax.random.uniform(jax.random.key(1), (10, 1), minval=-5.0, maxval=5.0)
    support = (x, 3.0 * jnp.sin(x + 1.0))
    predictions = {}
    for title, name in {"MAML": "maml", "Reptile": "reptile"}.items():
        folder = RESULTS / "sinusoid" / "finn2017" / name / "seed0"
        result = json.loads((folder / "result.json").read_text())
        _, settings = verify.recorded_settings(result)
        method = verify.make_method(result, settings, folder, None)
        start = method.learner.init(method.params)
        adapt = method.learner.inner.rebuild(num_steps=STEPS, batches=metajax.full_batch())
        states = {"random": start} if title == "MAML" else {}
        for label, state in (states | {title: load_state(folder, start)}).items():
            info = jax.jit(
                lambda state, adapt=adapt: adapt.apply(
                    state.meta_params,
                    support,
                    jax.random.key(0),
                    inner_state=state.inner_state,
                    probe=lambda params, step: model.apply(params, grid),
                )[1]
            )(state)
            fits = np.asarray(info.probe)[:, None, :, 0]
            predictions[label] = {step: fits[step] for step in (0, 1, 8, STEPS)}
    plots.regression_tasks(
        path,
        np.asarray(grid[:, 0]),
        3.0 * np.sin(np.asarray(grid[:, 0]) + 1.0)[None],
        (np.asarray(support[0]).T, np.asarray(support[1]).T),
        predictions,
    )


def draw(folder: Path) -> None:
    """Writes all figures."""
    folder.mkdir(exist_ok=True)
    results = report.load()
    sine_waves(results, (10,), folder / "finn2017_figure3.png")
    sine_waves(results, (5, 10, 20), folder / "finn2017_figure6.png")
    returns(results, {"navigation": "navigation"}, folder / "finn2017_figure4.png")
    tasks = [task for task in rl_runs.PAPER_RETURNS if task != "navigation"]
    returns(results, dict.fromkeys(tasks, "locomotion"), folder / "finn2017_figure5.png")
    one_sine_wave(folder / "nichol2018_figure1.png")


if __name__ == "__main__":
    draw(FOLDER)
    print(f"written to {FOLDER}")
