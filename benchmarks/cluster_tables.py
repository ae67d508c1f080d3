"""The sections of `benchmarks/README.md` on processes and faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.faults import summary
from benchmarks.markdown import table

Row = dict[str, Any]


def processes(rows: Sequence[Row]) -> list[str]:
    """Equal parameters, and weak scaling."""
    lines = [
        "Parameters after some meta-updates, compared with those of one process of four devices:",
        "all bits, or the norm of the difference, relative. Four processes add up in another order",
        "than four devices of one, and one device adds up without any other.",
        "",
    ]
    equal = [row for row in rows if row["rows"] == "equality"]
    cells = [
        [
            row["case"],
            f"{row['processes']} x {row['devices']}",
            "equal" if row["equal_bits"] else "differ",
            f"{row['difference']:.0e}",
        ]
        for row in equal
    ]
    lines += table(["case", "processes x devices", "bits", "difference"], cells)
    scaled = [row for row in rows if row["rows"] == "weak scaling"]
    if scaled:
        lines += ["Weak scaling, each process pinned to a core:", ""]
        cells = [
            [
                row["case"],
                str(row["processes"]),
                str(row["tasks"]),
                f"{row['seconds']:.3f}",
                f"{row['times_the_tasks']:.2f}x",
            ]
            for row in scaled
        ]
        lines += table(["case", "processes", "tasks", "seconds", "tasks a second"], cells)
    return lines


def faults(rows: Sequence[Row]) -> list[str]:
    """The campaign, by kind of fault."""
    lines = [
        "Each disturbs a short run of sine waves, Omniglot or navigation, in one process or two;",
        "the command is then repeated until it ends. Without a trace: all arrays of the last",
        "checkpoint, the evaluation and the lines of `metrics.jsonl` are those of an undisturbed",
        "run, and nothing printed a traceback. Damage is to files of checkpoints.",
        "",
    ]
    heads, *cells = summary(rows)
    return [*lines, *table(heads, cells)]
