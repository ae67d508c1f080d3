"""The sections of `benchmarks/README.md` on processes, faults and long runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults import summary
from benchmarks.markdown import table
from benchmarks.results_folder import named

Row = dict[str, Any]


def processes(rows: Sequence[Row]) -> list[str]:
    """Equal parameters, and weak scaling."""
    lines = [
        "Parameters after four meta-updates in float64, compared with those of one process of four",
        "devices: all bits, or the norm of the difference, relative. Four processes add up in",
        "another order than four devices of one, and one device adds up without any other. The",
        "trust region of navigation multiplies rounding; Adam does so in float32.",
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
        'the command is then repeated until it ends. "Without a trace" counts the runs whose',
        "arrays of the last checkpoint, evaluation and lines of `metrics.jsonl` equal those of an",
        "undisturbed run, and that printed no traceback. Damage is to files of checkpoints.",
        "",
    ]
    heads, *cells = summary(rows)
    return [*lines, *table(heads, cells)]


PANELS = {
    "resident_bytes": "resident MB",
    "open_files": "open files",
    "checkpoint_bytes": "MB of checkpoints",
}


def endurance(rows: Sequence[Row]) -> list[str]:
    """Samples of a run with a day's checkpoints."""
    (row,) = rows
    samples = row["samples"]
    middle, end = samples[len(samples) // 2], samples[-1]
    growth = (end[1] - middle[1]) / (end[0] - middle[0])
    shown = [samples[i * (len(samples) - 1) // 4] for i in range(5)]
    cells = [
        [
            f"{checkpoint:,}",
            f"{memory / 1e6:.0f}",
            str(threads),
            str(open_files),
            str(files),
            f"{size / 1e6:.1f}",
        ]
        for checkpoint, memory, threads, open_files, files, size in shown
    ]
    return [
        f"A run of sine waves with {row['checkpoints']:,} checkpoints and validations, one every",
        f"{86400 / row['checkpoints']:.0f} seconds of a day, in {row['seconds'] / 60:.0f} minutes.",
        f"Of the {row['workdir_bytes'] / 1e6:.1f} MB that its working directory has in the end,",
        f"{row['metrics_bytes'] / 1e6:.1f} are the log of metrics, which has two lines for each.",
        f"From the middle to the end, memory grows by {growth / 1e3:.1f} kB a checkpoint.",
        "",
        *table(["checkpoint", "resident MB", "threads", "open files", "files", "MB"], cells),
        f"![memory, open files and checkpoints over the run]({endurance_figure(rows)})",
        "",
    ]


def endurance_figure(rows: Sequence[Row]) -> str:
    """The file that `draw_endurance` makes."""
    return f"{named('endurance', rows[0]['device']['platform'])}.png"


def draw_endurance(rows: Sequence[Row], path: Path) -> None:
    """Memory, open files and the size of the checkpoints against their number."""
    import matplotlib.pyplot as plt

    (row,) = rows
    columns = dict(zip(row["columns"], zip(*row["samples"], strict=True), strict=True))
    figure, panels = plt.subplots(1, len(PANELS), figsize=(9, 2.6), layout="constrained")
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        scale = 1e6 if name.endswith("bytes") else 1
        axes.plot(columns["checkpoint"], [value / scale for value in columns[name]])
        axes.set(xlabel="checkpoints", ylabel=label, ylim=(0, None))
    figure.savefig(path, dpi=100)
    plt.close(figure)
