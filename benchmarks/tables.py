"""Renders the recorded benchmarks into `benchmarks/README.md`, tables and plots.

Called by `python -m benchmarks.report`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cluster_tables import (
    draw_endurance,
    endurance,
    endurance_figure,
    faults,
    processes,
)
from benchmarks.engine_tables import engines, frozen, remat
from benchmarks.growth_plots import OURS, draw_growth, exponent
from benchmarks.limit_tables import ideas, limits, memory, streaming
from benchmarks.markdown import table
from benchmarks.results_folder import PLATFORMS, RESULTS, named

Row = dict[str, Any]
PEERS = ("torch", "higher", "torchopt", "brax", "gymnasium", "mujoco")
PAGE = Path(__file__).parent / "README.md"

HEAD = """# Benchmarks

Rendered by `python -m benchmarks.report` from the records in `results/`, one JSON line per case
with device, versions and commit. The rows of a case are one run of `python -m benchmarks.NAME`, and
ratios are within it. The rows take turns in one process, and the tables show medians. Rows that
need other devices or cores have a process of their own. Time to the first result and bfloat16 are
single runs. Memory that is freed stays with the process, for all libraries alike, in the runs since
commit 1e182b7; the others also time how the system maps it anew at every call.
"""


def read(name: str) -> list[Row]:
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def where(rows: Sequence[Row]) -> str:
    return "; ".join(dict.fromkeys(map(_provenance, rows))) + "."


def _provenance(row: Row) -> str:
    device, versions = row["device"], row["versions"] | row.get("peers", {})
    kind = device["kind"]
    number = device.get("cpu_cores", 1)
    cores = f", {number} core{'s' * (number != 1)}" if device["platform"] == "cpu" else ""
    named = ", ".join(f"{name} {versions[name]}" for name in ("jax", *PEERS) if name in versions)
    set_ = "".join(f", `{name}={value}`" for name, value in row.get("environment", {}).items())
    return f"{kind}{cores}, {named}{set_}, commit {commit(row)}"


def commit(row: Row) -> str:
    """The short commit, with `-dirty` for code with changes."""
    if not row["commit"]:
        return "unknown"
    name, *dirty = row["commit"].split("-")
    return "-".join([name[:10], *dirty])


def meta_gradient(rows: Sequence[Row]) -> list[str]:
    lines = [
        "Seconds per meta-gradient of the meta-batch from the same weights and data. `speedup` is",
        "over the fastest peer of the case; `of matmul` is the share that useful operations reach",
        "of the rate of a 4096 x 4096 product of float32 arrays in the same run, at JAX's default",
        "precision, as the networks (TF32 on an NVIDIA GPU, for PyTorch alike); `differs` is the",
        "distance from the first row's meta-gradient, relative in norm: on a CPU, a library whose",
        "gradient is a tenth away is left out. On a GPU, TF32 alone moves these gradients by a",
        "quarter, because the images are noise: products rounded so on a CPU do the same, by",
        "either convolution.",
        "",
    ]

    def cells(row: Row) -> list[str]:
        order = "second" if row["order"] == 2 else "first"
        of = [row["case"], order, row["device"]["kind"], row["library"]]
        if "failed" in row:
            return [*of, f"failed: {row['failed']}", "", "", "", differs(row), commit(row)]
        compile_ = f"{row['compile_seconds']:.1f} s" if "compile_seconds" in row else ""
        return [
            *of,
            f"{row['median']:.3f}" if row["median"] > 0.1 else f"{row['median']:.5f}",
            f"{row['speedup']:.2f}x",
            f"{row['share_of_matmul_rate']:.0%}",
            compile_,
            differs(row),
            commit(row),
        ]

    def differs(row: Row) -> str:
        return f"{row['gradient_difference']:.0e}" if "gradient_difference" in row else ""

    of = ["case", "order", "device", "library"]
    heads = [*of, "seconds", "speedup", "of matmul", "compile", "differs", "commit"]
    return lines + table(heads, map(cells, rows))


def sinusoid(rows: Sequence[Row]) -> list[str]:
    def cells(row: Row) -> list[str]:
        rate, speedup = row["meta_iterations_per_second"], row["speedup"]
        of = [row["device"]["kind"], row["library"]]
        return [*of, f"{rate:,.0f}", f"{speedup:.1f}x", commit(row)]

    heads = ["device", "library", "meta-iterations per second", "metajax is faster by", "commit"]
    return table(heads, map(cells, rows))


def sampling(rows: Sequence[Row]) -> list[str]:
    heads = ["episodes sampled on", "episodes per second", "share of a meta-update"]
    return table(
        heads,
        (
            [r["where"], f"{r['episodes_per_second']:,.0f}", f"{r['share_of_meta_update']:.1%}"]
            for r in rows
        ),
    )


def scaling(rows: Sequence[Row]) -> list[str]:
    heads = [
        "scaling",
        "devices",
        "cores",
        "tasks",
        "seconds",
        "efficiency",
        "all-reduces",
        "bytes",
    ]

    def cells(row: Row) -> list[str]:
        return [
            row["scaling"],
            str(row["devices"]),
            str(row.get("cores", "")),
            str(row["tasks"]),
            f"{row['median']:.3f}",
            f"{row['efficiency']:.0%}" if "efficiency" in row else "",
            str(row["all_reduces"]),
            f"{row['all_reduce_bytes']:,}" if row["all_reduces"] else "",
        ]

    return table(heads, map(cells, rows))


def compile_time(rows: Sequence[Row]) -> list[str]:
    heads = ["case", "engine", "trace", "compile", "run", "first result"]

    def cells(row: Row) -> list[str]:
        parts = ("trace_seconds", "compile_seconds", "run_seconds", "first_result_seconds")
        return [row["case"], row["engine"], *(f"{row[part]:.1f} s" for part in parts)]

    return table(heads, map(cells, rows))


def convolution(rows: Sequence[Row]) -> list[str]:
    """A row for each layer, a column for each function."""
    names = list(dict.fromkeys(row["convolution"] for row in rows))
    found = {(row["layer"], row["tasks"], row["convolution"]): row for row in rows}

    def milliseconds(row: Row | None) -> str:
        return f"{1e3 * row['median']:.1f} ms" if row else ""

    cells = [
        [
            layer,
            str(tasks),
            *(milliseconds(found.get((layer, tasks, name))) for name in names),
        ]
        for layer, tasks in dict.fromkeys((row["layer"], row["tasks"]) for row in rows)
    ]
    return [
        "Forward and backward pass of 75 images of a task; of two tasks under `vmap`, each with a",
        "kernel of its own. `conv` chooses by itself how many images' patches are in memory at a",
        "time, and whether they are of the whole window or of one row, whose products are summed",
        "last (`row_sums`).",
        "",
        *table(["layer", "tasks", *(f"`{name}`" for name in names)], cells),
    ]


def deviceless(rows: Sequence[Row]) -> list[str]:
    """Memory and traffic as the compilers of accelerators report them; no times."""
    heads = ["case", "target", "devices", "tasks", "engine", "convolutions", "temporary"]
    heads += ["moved", "instructions", "fusions", "all-reduces", "compile", "commit"]

    def cells(row: Row) -> list[str]:
        across = f"{row['all_reduces']} of {row['all_reduce_bytes']:,} bytes"
        return [
            row["case"],
            row["target"],
            *(str(row[name]) for name in ("devices", "tasks", "engine", "method")),
            f"{row['temporary_bytes'] / 1e6:,.0f} MB",
            *_of_program(row),
            across if row["devices"] > 1 else "",
            f"{row['compile_seconds']:.0f} s",
            commit(row),
        ]

    return [
        "Compiled for devices that were not there: no time was measured. `temporary` is the memory",
        "of a device beside arguments and results, `moved` what its instructions read and write. A",
        "GPU launches a kernel for most instructions, of which fusions are several operations.",
        "",
        *table(heads, map(cells, rows)),
    ]


def _of_program(row: Row) -> list[str]:
    """What older records do not have."""
    if "instructions" not in row:
        return ["", "", ""]
    return [
        f"{row['moved_bytes'] / 1e9:.1f} GB",
        f"{row['instructions']:,}",
        f"{row['fusions']:,}",
    ]


def precision(rows: Sequence[Row]) -> list[str]:
    heads = ["compute", "validation accuracy", "test accuracy", "meta-steps", "seconds"]

    def cells(row: Row) -> list[str]:
        test = f"{100 * row['test_accuracy']:.2f} ± {100 * row['test_ci95']:.2f}"
        return [
            row["dtype"],
            f"{100 * row['validation_accuracy']:.2f}",
            test,
            f"{row['meta_steps']:,}",
            f"{row['seconds']:.0f}",
        ]

    return table(heads, map(cells, rows))


def throughput(rows: Sequence[Row]) -> list[str]:
    lines = [
        "Environment steps per second; rollouts are as long in all rows of a case and, but for",
        "Gymnasium's, as many. `update` is whole meta-updates from the initialization on;",
        "`sampling` is the rollouts of one of its adaptation steps, under the policy; `random` is",
        "the environments alone, with random actions. Gymnasium's environments are stepped by a",
        "PyTorch policy. `in sampling` is the share of the update's time that its rollouts take;",
        "the rest is learning. `random` steps all tasks at once; the others as many at a time as",
        "`metajax.parallel.default_chunk` says. A step of navigation is a few operations on two",
        "numbers: next to it, learning takes nearly all the time.",
        "",
    ]

    def cells(row: Row) -> list[str]:
        share = row.get("sampling_share")
        return [
            row["case"],
            row["device"]["kind"],
            row["what"],
            f"{row['env_steps_per_second']:,.0f}",
            f"{row['of_random']:.1%}",
            f"{row['over_gymnasium']:.1f}x",
            "" if share is None else f"{share:.0%}",
        ]

    of = ["case", "device", "what"]
    heads = [*of, "steps per second", "of random", "over Gymnasium", "in sampling"]
    return lines + table(heads, map(cells, rows))


def rl_parts(rows: Sequence[Row]) -> list[str]:
    lines = [
        "The parts of a trust-region update, timed one by one: `collect` rolls policies out and",
        "adapts them, `gradient` is that of the loss through adaptation, `linearize` and `product`",
        "are of the curvature for the conjugate gradients, `attempt` is one of the line search.",
        "Within the update the compiler shares work among them, so that the shares may sum to more",
        "than 1. `promp` takes five clipped steps on as many trajectories instead.",
        "",
    ]

    def cells(row: Row) -> list[str]:
        calls = "" if row["part"] in ("update", "promp") else str(row["calls"])
        return [
            row["case"],
            row["part"],
            calls,
            f"{row['seconds']:.4f}",
            f"{row['share']:.0%}",
            f"{row['env_steps_per_second']:,.0f}" if not calls else "",
        ]

    heads = ["case", "part", "calls", "seconds each", "of the update", "environment steps a second"]
    return lines + table(heads, map(cells, rows))


def growth(rows: Sequence[Row]) -> list[str]:
    sizes, chunks = plots(rows)
    of: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row["varied"].startswith("chunk"):
            key = row["varied"].replace("_", " "), row["library"]
            of.setdefault(key, []).append(row)

    def cells(key: tuple[str, str]) -> list[str]:
        mine = sorted(of[key], key=lambda row: row["value"])
        ours = {row["value"]: row["median"] for row in of[key[0], OURS]}
        last = mine[-1]
        ratio = last["median"] / ours[last["value"]]
        span = f"{mine[-2]['value']} to {last['value']}"
        return [*key, span, f"{exponent(mine):.2f}", f"{last['median']:.3f}", f"{ratio:.2f}"]

    return [
        f"![seconds and memory against sizes]({sizes})",
        "",
        "The time grows with this power of a size between its last two values; seconds at the",
        "last, and in multiples of metajax on one device. More processes have more tasks, as many",
        "each; no peer computes in several here.",
        "",
        *table(["size", "library", "from", "power", "seconds", "of metajax"], map(cells, of)),
        "",
        f"![seconds against tasks per vmap]({chunks})",
        "",
    ]


def plots(rows: Sequence[Row]) -> tuple[str, str]:
    """The files that `draw` makes of the growth record of a platform."""
    platform = rows[0]["device"]["platform"]
    return f"{named('growth', platform)}.png", f"{named('chunks', platform)}.png"


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], list[str]]]] = {
    "meta_gradient": ("Meta-gradients against peers", meta_gradient),
    "sinusoid": ("Sinusoids", sinusoid),
    "limits": ("Limits and shares", limits),
    "ideas": ("Ideas that were tried", ideas),
    "memory": ("Memory", memory),
    "sampling": ("Sampling", sampling),
    "streaming": ("Images on disk", streaming),
    "engines": ("Engines", engines),
    "remat": ("Stored or recomputed", remat),
    "frozen": ("Frozen parameters", frozen),
    "scaling": ("Devices", scaling),
    "convolution": ("Convolutions", convolution),
    "deviceless": ("Compiled for accelerators", deviceless),
    "compile_time": ("Time to the first result", compile_time),
    "precision": ("bfloat16", precision),
    "throughput": ("Environment steps", throughput),
    "rl_parts": ("Parts of a reinforcement-learning update", rl_parts),
    "growth": ("Growth", growth),
    "processes": ("Processes", processes),
    "faults": ("Faults", faults),
    "endurance": ("Long runs", endurance),
}


def render() -> str:
    lines = [HEAD]
    for name, (title, section) in SECTIONS.items():
        for platform in PLATFORMS:
            rows = read(named(name, platform))
            if rows:
                lines += [
                    f"## {title}" + ("" if platform == "cpu" else f", {platform.upper()}"),
                    "",
                    f"`python -m benchmarks.{name}`: {where(rows)}",
                    "",
                    *section(rows),
                ]
    return "\n".join(lines).rstrip() + "\n"


def draw() -> None:
    """The plots of the records, beside the page."""
    for platform in PLATFORMS:
        if rows := read(named("growth", platform)):
            draw_growth(rows, *(PAGE.parent / name for name in plots(rows)))
        if rows := read(named("endurance", platform)):
            draw_endurance(rows, PAGE.parent / endurance_figure(rows))
