"""The plots of the growth record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS = "metajax"


def libraries(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The libraries of some rows, in order."""
    return [*dict.fromkeys(row["library"] for row in rows)]


def exponent(rows: Sequence[dict[str, Any]]) -> float:
    """The power of the size with which the time grows, between the last two sizes."""
    before, last = sorted(rows, key=lambda row: row["value"])[-2:]
    return math.log(last["median"] / before["median"]) / math.log(last["value"] / before["value"])


def draw_growth(rows: Sequence[dict[str, Any]], sizes_file: Path, chunks_file: Path) -> None:
    """Draws seconds and memory against sizes, and seconds against the tasks per vmap."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    sizes = [*dict.fromkeys(r["varied"] for r in rows if not r["varied"].startswith("chunk"))]
    figure, axes = plt.subplots(
        2, len(sizes), figsize=(3 * len(sizes), 5.5), layout="constrained", sharey="row"
    )
    for column, name in enumerate(sizes):
        own = [r for r in rows if r["varied"] == name]
        for library in libraries(own):
            mine = [r for r in own if r["library"] == library]
            values = [r["value"] for r in mine]
            style = "o-" if library.startswith(OURS) else "s--"
            axes[0, column].plot(values, [r["median"] for r in mine], style, label=library)
            if library == OURS and "temporary_bytes" in mine[0]:
                axes[1, column].plot(values, [r["temporary_bytes"] / 1e6 for r in mine], "o-")
        values = sorted({r["value"] for r in own})
        axes[1, column].set_xlabel(name.replace("_", " "))
        for axis in axes[:, column]:
            axis.set(xscale="log", yscale="log", xticks=values, xticklabels=values)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
    axes[0, 0].set_ylabel("seconds a meta-update")
    axes[1, 0].set_ylabel("temporary MB, metajax")
    axes[0, 0].legend(fontsize="x-small")
    figure.savefig(sizes_file, dpi=100)
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name in sorted({r["varied"] for r in rows if r["varied"].startswith("chunk")}):
        mine = [r for r in rows if r["varied"] == name]
        best = min(r["median"] for r in mine)
        values = [r["value"] for r in mine]
        axis.plot(values, [r["median"] / best for r in mine], "o-", label=name[len("chunk, ") :])
    axis.set(
        xscale="log",
        xticks=values,
        xticklabels=values,
        xlabel="tasks per vmap, of 32",
        ylabel="time over the fastest",
    )
    axis.minorticks_off()
    axis.legend()
    figure.savefig(chunks_file, dpi=100)
    plt.close(figure)
