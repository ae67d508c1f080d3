"""Which inner gradients to learn from: Nichol 2018, section 6.2, figure 3, table 5.

Four mini-batches that share no example give the inner gradients g1, g2, g3, g4. The outer step
takes the last of the first k, their sum (Reptile of k steps) or their mean.

Command:   python -m experiments.reptile_gradients --workdir=runs/reptile_gradients
Hardware:  2 CPU cores
Wall time: ten runs of 40,000 meta-steps, some 20 minutes each
Expected:  g1 alone is poor; all others improve with k, the sums the most
"""

from __future__ import annotations

import dataclasses

import metajax
from experiments import few_shot, image_data, plots, reptile_runs
from experiments.command import Command, Experiment, run

NUM_BATCHES = 4


def combinations() -> dict[str, tuple[float, ...]]:
    """The weights of the inner gradients, by the name of their combination."""
    weights: dict[str, tuple[float, ...]] = {}
    for k in range(1, NUM_BATCHES + 1):
        weights[f"g{k}"] = (0.0,) * (k - 1) + (1.0,)
        if k > 1:
            together = "+".join(f"g{i}" for i in range(1, k + 1))
            weights[together] = (1.0,) * k
            weights[f"({together}) div {k}"] = (1.0 / k,) * k
    return weights


def runs() -> list[reptile_runs.Run]:
    """A run for each combination."""
    return [
        reptile_runs.Run(name, {"num_steps": len(weights)}, metajax.weighted_updates(weights))
        for name, weights in combinations().items()
    ]


def execute(command: Command) -> int:
    """Trains the missing runs, writes the results and draws the figure."""
    todo = runs()
    found = reptile_runs.execute(command, todo)
    if isinstance(found, int):
        return found
    print(f"\n{'combination':22}test accuracy (%), transductive")
    for name, result in found.items():
        print(f"{name:22}{100 * result['accuracy']:.2f} +- {100 * result['ci95']:.2f}")
    reptile_runs.write(command, todo, found)
    plots.lines(
        command.workdir / "gradients.png",
        {"": {name: result["curve"] for name, result in found.items()}},
        xlabel="meta-steps",
        ylabel="accuracy on meta-validation tasks (%)",
        scale=100,
        title="What the outer step takes of the inner gradients, 5-shot 5-way Omniglot",
    )
    print(f"\n{command.workdir / 'gradients.png'}, result.json beside it")
    return 0


EXPERIMENT = Experiment(
    "reptile_gradients",
    "Which inner gradients to learn from: Nichol 2018, figure 3.",
    {
        # Table 5; the four mini-batches of 25 are all 20 drawings of the five characters.
        "nichol2018/reptile_gradients": dataclasses.replace(
            reptile_runs.SETTINGS, outer_learning_rate=0.25, num_steps=NUM_BATCHES
        )
    },
    execute,
    few_shot.print_presets,
    launch=image_data.DataLaunch(),
    hidden=(*reptile_runs.HIDDEN, "num_steps"),
)

if __name__ == "__main__":
    run(EXPERIMENT)
