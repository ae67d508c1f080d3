"""Overlap of inner mini-batches: Nichol 2018, section 6.3, figure 4, table 6.

First-order MAML takes the last inner step as the outer gradient. It fails if the steps before have
seen the examples of that step (a shared tail), because the batches cycle through the examples more
than once or are drawn with replacement. It works if the last step has examples of its own (a
separate tail). Reptile works in all cases.

Command:   python -m experiments.reptile_batches --panel=inner_steps --workdir=runs/reptile_batches
Hardware:  2 CPU cores
Wall time: 25 to 30 runs a panel of 40,000 meta-steps, half an hour each; --num_meta_steps shortens
Expected:  a shared tail drops from the fifth inner step on when cycling, more gently with
           replacement; also with batches above 25; no outer step size prevents it
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from experiments import few_shot, image_data, plots, reptile_runs
from experiments.command import Command, Experiment, run
from experiments.settings import setting

# A separate tail takes 5 of the 20 drawings of a character.
TAIL_SHOTS = 5
METHODS: dict[str, dict[str, Any]] = {
    "reptile, cycling": {"algorithm": "reptile"},
    "reptile, replacement": {"algorithm": "reptile", "batches": "replacement"},
    "shared tail, cycling": {"algorithm": "fomaml", "tail": "shared"},
    "shared tail, replacement": {
        "algorithm": "fomaml",
        "tail": "shared",
        "batches": "replacement",
    },
    "separate tail, cycling": {
        "algorithm": "fomaml",
        "tail": "separate",
        "train_shots": 20 - TAIL_SHOTS,
        "queries": TAIL_SHOTS,
    },
}


class Panel(NamedTuple):
    """One panel of figure 4.

    Attributes:
      setting: the name of the swept setting.
      values: its values.
      changes: the other settings, a column of table 6.
      xlabel: the label of the horizontal axis.
    """

    setting: str
    values: tuple[float, ...]
    changes: dict[str, Any]
    xlabel: str


# Table 6. The paper does not list the values of its sweeps; these span its axes.
TABLE_6: dict[str, Panel] = {
    "inner_steps": Panel(
        "num_steps", (2, 4, 5, 6, 8, 10), {"inner_batch": 25}, "inner iterations (4a)"
    ),
    "inner_batch": Panel(
        "inner_batch", (5, 10, 25, 35, 50, 75), {"num_steps": 4}, "inner batch size (4b)"
    ),
    "outer_step": Panel(
        "outer_learning_rate",
        (0.05, 0.1, 0.25, 0.5, 1.0),
        {"num_steps": 4, "inner_batch": 100},
        "outer step size (4c)",
    ),
}


def runs(panel: str, ways: int = 5) -> dict[str, dict[float, reptile_runs.Run]]:
    """The runs of a panel, by method and by value of the swept setting."""
    setting, values, changes, _ = TABLE_6[panel]
    points: dict[str, dict[float, reptile_runs.Run]] = {}
    for method, how in METHODS.items():
        for value in values:
            config = {**changes, setting: value, **how}
            # A mini-batch has at most the examples that are not in the tail.
            examples = ways * config.get("train_shots", 20)
            config["inner_batch"] = min(config["inner_batch"], examples)
            config["inner_learning_rate"] = (
                config["inner_batch"] * reptile_runs.SUMMED_LEARNING_RATE
            )
            name = f"{panel}/{method.replace(', ', '-').replace(' ', '_')}/{value:g}"
            points.setdefault(method, {})[value] = reptile_runs.Run(name, config)
    return points


@dataclasses.dataclass(frozen=True)
class PanelLaunch(image_data.DataLaunch):
    """Panels."""

    panel: tuple[str, ...] = setting(
        tuple(TABLE_6), "Figure 4 a, b and c; may be given several times.", choices=tuple(TABLE_6)
    )


def execute(command: Command) -> int:
    """Trains the missing runs, writes the results and draws the figure."""
    by_panel = {panel: runs(panel, command.settings.ways) for panel in command.launch.panel}
    todo = [
        each for methods in by_panel.values() for of in methods.values() for each in of.values()
    ]
    found = reptile_runs.execute(command, todo)
    if isinstance(found, int):
        return found
    curves = {
        TABLE_6[panel].xlabel: {
            method: [(value, found[each.name]["accuracy"]) for value, each in points.items()]
            for method, points in methods.items()
        }
        for panel, methods in by_panel.items()
    }
    for xlabel, points_by_method in curves.items():
        values = [x for x, _ in next(iter(points_by_method.values()))]
        print(f"\n{xlabel:26}" + "".join(f"{x:>8g}" for x in values))
        for method, points in points_by_method.items():
            print(f"{method:26}" + "".join(f"{100 * y:>8.2f}" for _, y in points))
    reptile_runs.write(command, todo, found, curves=curves)
    plots.lines(
        command.workdir / "batches.png",
        curves,
        xlabel=None,
        ylabel="accuracy on meta-test tasks (%)",
        scale=100,
        title="Inner mini-batches of Reptile and first-order MAML, 5-shot 5-way Omniglot",
    )
    print(f"\n{command.workdir / 'batches.png'}, result.json beside it")
    return 0


EXPERIMENT = Experiment(
    "reptile_batches",
    "Overlap of inner mini-batches: Nichol 2018, figure 4.",
    {
        "nichol2018/reptile_batches": dataclasses.replace(
            reptile_runs.SETTINGS, outer_learning_rate=1.0
        )
    },
    execute,
    few_shot.print_presets,
    launch=PanelLaunch(),
    hidden=(
        *reptile_runs.HIDDEN,
        "num_steps",
        "inner_batch",
        "batches",
        "inner_learning_rate",
        "train_shots",
        "queries",
    ),
)

if __name__ == "__main__":
    run(EXPERIMENT)
