"""Which inner gradients to learn from: Nichol 2018, section 6.2, figure 3, table 5.

Four mini-batches that share no example give the inner gradients g1, g2, g3, g4. The outer step
takes the last of the first k, their sum (Reptile of k steps) or their mean.

Command:   python -m experiments.reptile_gradients --workdir=runs/reptile_gradients
Hardware:  2 CPU cores
Wall time: ten runs of 40,000 meta-steps, some 20 minutes each
Expected:  g1 alone is poor; all others improve with k, the sums the most
"""

from __future__ import annotations

import functools

from absl import flags

import metajax
from experiments import common, plots, sweep

flags.adopt_module_key_flags(sweep)
NUM_BATCHES = 4
# Table 5; the four mini-batches of 25 are all 20 drawings of the five characters.
TABLE_5: common.Config = {"outer_learning_rate": 0.25, "num_steps": NUM_BATCHES}


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


def objective(weights: tuple[float, ...], loss: metajax.LossFn) -> metajax.Objective:
    del loss  # there is no query left to measure it on
    return metajax.weighted_updates(weights)


def runs() -> list[sweep.Run]:
    return [
        sweep.Run(
            name,
            {"num_steps": len(weights)},
            functools.partial(objective, weights),
        )
        for name, weights in combinations().items()
    ]


def main() -> None:
    settings = sweep.resolve("reptile_gradients", TABLE_5)
    todo = runs()
    found = sweep.execute(settings, todo)
    if found is None:
        return
    sweep.write(settings, todo, found)
    plots.lines(
        settings.workdir / "gradients.png",
        {"": {name: run["curve"] for name, run in found.items()}},
        xlabel="meta-steps",
        ylabel="accuracy on meta-validation tasks",
        title="What the outer step takes of the inner gradients, 5-shot 5-way Omniglot",
    )
    print(f"\n{'combination':22}test accuracy (%), transductive")
    for name, run in found.items():
        print(f"{name:22}{100 * run['accuracy']:.2f} +- {100 * run['ci95']:.2f}")
    print(f"\n{settings.workdir / 'gradients.png'}, result.json beside it")


if __name__ == "__main__":
    common.run(main)
