"""A table of what the papers contain, and of what has been run, from the records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks import runs
from benchmarks.results_folder import RESULTS
from experiments import locomotion, navigation, protocols, reptile_runs, sinusoid
from metajax.train.weights import FILE

Result = runs.Result
RL: dict[str, dict[str, Any]] = {
    "navigation": dict(navigation.PRESETS),
    "locomotion": dict(locomotion.PRESETS),
}
RL_METHODS = ("maml", "pretrain", "random", "oracle", "context")
TASKS = ("cheetah_vel", "cheetah_dir", "ant_vel", "ant_dir", "ant_goal")


class Item(NamedTuple):
    """An item of a paper.

    Attributes:
      where: the figure or the table.
      what: one cell of it.
      belongs: whether a record is one of this item.
      prescribed: the meta-steps of a run at full length; `None` if no command makes it.
    """

    where: str
    what: str
    belongs: Callable[[Result], bool]
    prescribed: int | None


# What no command makes, and what launchers of its own make.
WITHOUT = (
    ("Finn 2017, figure 7", "ten more sine waves"),
    ("Finn 2017, table 2", "averages over several tasks"),
    ("Finn 2017, table 3", "context vector on Omniglot"),
    ("Nichol 2018, figure 2", "two manifolds, equations 42 to 47"),
)
OF_LAUNCHERS = (
    ("Nichol 2018, figure 3", "inner gradients", "reptile_gradients"),
    ("Nichol 2018, figure 4", "inner mini-batches", "reptile_batches"),
)


def items() -> Iterator[Item]:
    """The items in the order of the papers."""
    sine = "Finn 2017, figures 2, 3, 6, table 2"
    for algorithm in ("maml", "fomaml"):
        preset = sinusoid.PRESETS["finn2017"].num_meta_steps
        yield Item(sine, f"sine waves, {algorithm}", _sine_waves(algorithm), preset)
    for name in protocols.PAPER_RESULTS:
        paper, cell = name.split("/")
        lengths = {
            preset["num_meta_steps"]
            for presets in runs.PRESETS.values()
            for each, preset in presets.items()
            if each == name
        }
        if paper in WHERE and lengths:
            data = "omniglot" if "omniglot" in cell else "miniimagenet"
            yield Item(WHERE[paper][data], cell, _cell(name), *lengths)
    for method in RL_METHODS:
        yield _rl("Finn 2017, figure 4, table 4", "navigation", None, method)
    for task in TASKS:
        for method in RL_METHODS:
            yield _rl("Finn 2017, figure 5, table 5", "locomotion", task, method)
    steps = sinusoid.REPTILE["num_meta_steps"]
    yield Item("Nichol 2018, figure 1", "one sine wave, reptile", _sine_waves("reptile"), steps)
    for where, what, launcher in OF_LAUNCHERS:
        yield Item(where, what, _launched(launcher), reptile_runs.SETTINGS.num_meta_steps)
    for where, what in WITHOUT:
        yield Item(where, what, lambda _: False, None)


WHERE = {
    "finn2017": dict.fromkeys(("omniglot", "miniimagenet"), "Finn 2017, table 1"),
    "nichol2018": {"miniimagenet": "Nichol 2018, table 1", "omniglot": "Nichol 2018, table 2"},
}


def _sine_waves(algorithm: str) -> Callable[[Result], bool]:
    return lambda r: r["name"].startswith(f"sinusoid/finn2017/{algorithm}/")


def _launched(launcher: str) -> Callable[[Result], bool]:
    return lambda r: r["experiment"] == launcher


def _cell(name: str) -> Callable[[Result], bool]:
    return lambda r: r["experiment"] in runs.PRESETS and runs.cell_name(r) == name


def _rl(where: str, experiment: str, task: str | None, method: str) -> Item:
    def belongs(result: Result) -> bool:
        same = result["experiment"] == experiment and result["algorithm"] == method
        return same and result["config"].get("task") == task and result["preset"] == "finn2017"

    steps = 0 if method == "random" else RL[experiment]["finn2017"].num_meta_steps
    return Item(where, f"{task or experiment}, {method}", belongs, steps)


def state(item: Item, results: Iterable[Result]) -> tuple[str, str]:
    """How far an item has been run, and whether its record has weights."""
    found = [result for result in results if item.belongs(result)]
    if item.prescribed is None:
        return "no command", ""
    if not found:
        return "not run", ""
    longest = max(map(runs.all_meta_steps, found))
    chosen = [result for result in found if runs.all_meta_steps(result) == longest]
    weights = any((RESULTS / result["name"] / FILE).exists() for result in chosen)
    if longest < item.prescribed:
        return f"{longest:,} of {item.prescribed:,} meta-steps", "yes" if weights else ""
    seeds = len({result["config"]["seed"] for result in chosen})
    return "full length" + (f", {seeds} seeds" if seeds > 1 else ""), "yes" if weights else ""


def coverage_table(results: list[Result]) -> list[str]:
    """A row for each item."""
    rows = ([item.where, item.what, *state(item, results)] for item in items())
    return [
        "| | | run | weights |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
