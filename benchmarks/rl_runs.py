"""Tables of meta-reinforcement learning, from the records of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import Result, by_seeds, num_seeds, over_seeds, training, where
from experiments import meta_rl
from experiments.settings import setting_rules

# task -> {algorithm: mean return after 0, 1, ... gradient steps}: what the authors of Finn 2017
# published of their figures 4 and 5.
PAPER_RETURNS: dict[str, dict[str, list[float]]] = json.loads(
    (Path(meta_rl.__file__).with_name("paper_returns.json")).read_text()
)
STEPS = range(4)
ORDER = setting_rules(meta_rl.MetaRL)["algorithm"].choices
# Differences from the preset that the table mentions.
SHOWN = (
    "reward",
    "simulator",
    "backend",
    "horizon",
    "meta_batch_size",
    "trajectories",
    "num_steps",
    "inner_learning_rate",
    "step_decay",
    "every_step",
    "standardize",
    "max_kl",
    "outer_schedule",
    "outer_learning_rate",
    "gae_lambda",
    "init_std",
    "min_std",
    "context_size",
)
# The environment, and the amount of training.
SIZE = ("task", "simulator", "backend", "horizon", "preset")


def headline_rows(results: list[Result]) -> list[str]:
    """A row for each adapting algorithm of navigation and of every locomotion task."""
    lines = []
    for runs in [*_groups(results, "navigation"), *_groups(results, "locomotion")]:
        result = runs[0]
        if result["algorithm"] not in ("maml", "fomaml") or "," in result["name"]:
            continue  # a baseline, or other settings than the preset's
        if result["experiment"] == "navigation":
            what = f"2D navigation, {result['preset']}: return after 1, 2, 3 steps"
            paper, ours = _paper("navigation", 2)[1:], _returns(runs, 2)[1:]
        else:
            task = result["config"]["task"]
            what = f"{task}, {result['algorithm']}: score after 1 step"
            oracles = [run for run in results if _is_matching_oracle(run, result)]
            paper = [f"{paper_score(task):.2f}"] if task in PAPER_RETURNS else []
            ours = [_score(runs, oracles)] if oracles else []
        link = f"[{what}](benchmarks/results/{result['name']}){num_seeds(runs)}"
        lines.append(_line([link, ", ".join(paper), ", ".join(ours), training(runs)]))
    return lines


def navigation_table(results: list[Result]) -> list[str]:
    groups = _groups(results, "navigation")
    if not groups:
        return []
    return [
        "| | surrogate | preset | goals | 0 | 1 | 2 | 3 | meta-steps | env steps | training "
        "| device |",
        "|" + "---|" * 12,
        _line(
            ["the paper", "log_likelihood", "", "40", *_paper("navigation", 2), "500", "", "", ""]
        ),
        *(
            _line(
                [
                    _link(runs),
                    _surrogate(runs),
                    _preset(runs),
                    f"{_num_tasks(runs[0])}",
                    *_returns(runs, 2),
                    *_cost(runs),
                ]
            )
            for runs in groups
        ),
    ]


def cart_pole_table(results: list[Result]) -> list[str]:
    groups = _groups(results, "cart_pole")
    return [
        "| | tasks | 0 | 1 | 2 | 3 | meta-steps | env steps | training | device |",
        "|" + "---|" * 10,
        *(
            _line([_link(runs), f"{_num_tasks(runs[0])}", *_returns(runs, 1), *_cost(runs)])
            for runs in groups
        ),
    ]


def locomotion_table(results: list[Result]) -> list[str]:
    groups = _groups(results, "locomotion")
    if not groups:
        return []
    lines = [
        "| task | | preset | 0 | 1 | 2 | 3 | score | paper | meta-steps | env steps | training "
        "| device |",
        "|" + "---|" * 13,
    ]
    for runs in groups:
        task = runs[0]["config"]["task"]
        adapted = runs[0]["algorithm"] in ("maml", "fomaml")
        oracles = [run for run in results if _is_matching_oracle(run, runs[0])]
        score = _score(runs, oracles) if oracles and not _fixed(runs) else ""
        paper = paper_score(task) if adapted and task in PAPER_RETURNS else None
        lines.append(
            _line(
                [
                    task,
                    _link(runs),
                    _preset(runs),
                    *_returns(runs, 1),
                    score,
                    "" if paper is None else f"{paper:.2f}",
                    *_cost(runs),
                ]
            )
        )
    return lines


def paper_score(task: str) -> float:
    """The score of the paper's MAML after one step."""
    returns = PAPER_RETURNS[task]
    return normalized(returns["maml"][1], returns["random"][0], returns["oracle"][0])


def normalized(value: float, random: float, oracle: float) -> float:
    return (value - random) / (oracle - random)


def _score(runs: list[Result], oracles: list[Result]) -> str:
    random, oracle = _mean(runs, "random", 0), _mean(oracles, "return", 0)
    return f"{normalized(_mean(runs, 'return', 1), random, oracle):.2f}"


def _mean(runs: list[Result], row: str, step: int) -> float:
    return float(np.mean([run["evaluation"][row]["mean"][step] for run in runs]))


def _is_matching_oracle(run: Result, other: Result) -> bool:
    if (run["experiment"], run["algorithm"]) != (other["experiment"], "oracle"):
        return False
    return all(run["config"][key] == other["config"][key] for key in SIZE)


def _fixed(runs: list[Result]) -> bool:
    """Whether the policy was evaluated without adaptation only."""
    return len(runs[0]["evaluation"]["return"]["mean"]) < 2


def _groups(results: list[Result], experiment: str) -> list[list[Result]]:
    """One group per row, by task and in the order of the algorithms."""

    def place(runs: list[Result]) -> tuple[Any, ...]:
        config = runs[0]["config"]
        algorithm = ORDER.index(runs[0]["algorithm"])
        named = runs[0]["preset"], config["surrogate"], runs[0]["meta_steps"]
        return (config.get("task", ""), algorithm, *named, _num_tasks(runs[0]))

    return sorted(by_seeds(r for r in results if r["experiment"] == experiment), key=place)


def _num_tasks(result: Result) -> int:
    return result["evaluation"]["return"]["num_tasks"]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _link(runs: list[Result]) -> str:
    seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
    return f"[{runs[0]['algorithm']}](benchmarks/results/{runs[0]['name']}){seeds}"


def _surrogate(runs: list[Result]) -> str:
    """Without adaptation there is none."""
    return "" if _fixed(runs) else runs[0]["config"]["surrogate"]


def _preset(runs: list[Result]) -> str:
    config = runs[0]["config"]
    changed = [f"{key}={config[key]}" for key in SHOWN if key in config["overrides"]]
    return " ".join([runs[0]["preset"], ", ".join(changed)]).rstrip()


def _returns(runs: list[Result], digits: int) -> list[str]:
    rows = [run["evaluation"]["return"] for run in runs]
    return [over_seeds(rows, step, digits) if step < len(rows[0]["mean"]) else "" for step in STEPS]


def _paper(task: str, digits: int) -> list[str]:
    return [f"{value:.{digits}f}" for value in PAPER_RETURNS[task]["maml"]]


def _cost(runs: list[Result]) -> list[str]:
    """Meta-steps, environment steps and time of the training, empty for an untrained policy."""
    result = runs[0]
    if not result["meta_steps"]:
        return ["", "", "", where(result)]
    seconds = np.mean([run["wall_seconds"] for run in runs])
    steps = np.mean([run["env_steps_per_second"] * run["wall_seconds"] for run in runs])
    return [f"{result['meta_steps']:,}", f"{steps / 1e6:.1f} M", f"{seconds:,.0f} s", where(result)]
