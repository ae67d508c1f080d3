"""The sections of `benchmarks/README.md` on engines and what they store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.markdown import table

Row = dict[str, Any]


def engines(rows: Sequence[Row]) -> list[str]:
    heads = ["network", "inner steps", "engine", "seconds", "of second_order", "MB", "error"]

    def cells(row: Row) -> list[str]:
        return [
            row["network"],
            str(row["num_steps"]),
            row["engine"],
            f"{row['median']:.3f}",
            f"{row['time_ratio']:.2f}",
            f"{row['temporary_bytes'] / 1e6:.1f}",
            f"{row['gradient_error']:.1e}",
        ]

    per_step = [
        "Temporary memory per further inner step, from 20 to 100, in multiples of the parameters:",
        "",
        *table(["network", "engine", "parameters"], _per_step(rows)),
    ]
    lines = [
        "`error` is the distance of the float32 meta-gradient from the exact one in float64,",
        "relative in norm. That of `first_order` is the approximation's; so is that of `implicit`,",
        "whose inner problem has a strong proximal term and small steps, of which many come near",
        "its minimum; where they do not settle (the perceptron's 100) the two gradients part.",
        "",
    ]
    return lines + table(heads, map(cells, rows)) + per_step


def frozen(rows: Sequence[Row]) -> list[str]:
    heads = ["engine", "inner steps", "parameters", "by hand", "operations", "seconds"]
    by_hand = {(r["engine"], r["num_steps"]): r for r in rows if r["loop"] == "by hand"}

    def cells(row: Row) -> list[str]:
        other = by_hand[row["engine"], row["num_steps"]]
        return [
            row["engine"],
            str(row["num_steps"]),
            f"{row['temporary_of_parameters']:.2f}",
            f"{other['temporary_of_parameters']:.2f}",
            f"{row['flops'] / other['flops']:.2f}",
            f"{row['median'] / other['median']:.2f}",
        ]

    lines = [
        "A head adapts, a body of six layers of 512 x 512 does not. Temporary memory in multiples",
        "of all parameters, beside that of a loop by hand with the head alone in it; operations",
        "and seconds as ratios to that loop. XLA counts the body of a loop once.",
        "",
    ]
    return lines + table(heads, map(cells, (r for r in rows if r["loop"] == "metajax")))


def remat(rows: Sequence[Row]) -> list[str]:
    heads = ["problem", "inner steps", "kept", "time", "memory", "by default"]

    def cells(row: Row) -> list[str]:
        return [
            row["case"],
            str(row["num_steps"]),
            f"{row['kept_of_parameters']:.2f}",
            f"{row['time_ratio']:.2f}",
            f"{row['memory_ratio']:.2f}",
            "recomputed" if row["recomputed_by_default"] else "stored",
        ]

    lines = [
        "`second_order()` with inner steps that the backward pass recomputes, over the same with",
        "what was stored of them: time and temporary memory. `kept` is what the gradient of the",
        "loss keeps of its forward pass, over the parameters. The default chooses by it from ten",
        "inner steps, and before if the steps together keep 256 MB or more.",
        "",
    ]
    ordered = sorted(rows, key=lambda row: (row["num_steps"], row["kept_of_parameters"]))
    return lines + table(heads, map(cells, ordered))


def _per_step(rows: Sequence[Row]) -> Iterable[list[str]]:
    found = {(r["network"], r["engine"], r["num_steps"]): r for r in rows}
    for network, engine, steps in found:
        if steps == 100:
            few, many = found[network, engine, 20], found[network, engine, 100]
            grown = (many["temporary_bytes"] - few["temporary_bytes"]) / 80
            yield [network, engine, f"{grown / many['parameter_bytes']:.2f}"]
