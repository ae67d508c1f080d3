"""The sections of `benchmarks/README.md` on limits, memory, ideas and images on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.markdown import table

Row = dict[str, Any]
ORDERS = {1: "first", 2: "second"}
KINDS = ("products", "elementwise", "reductions", "moves")


def limits(rows: Sequence[Row]) -> list[str]:
    heads = [
        *("case", "order", "devices", "seconds", "useful", "computed", "moved", "of matmul"),
        *("of memory", *KINDS, "rest", "rate of products", "instructions", "commit"),
    ]

    def cells(row: Row) -> list[str]:
        whole = row["devices"] * row["median"]
        shares = [row["traced_seconds"].get(kind, 0.0) / whole for kind in KINDS]
        # Of the rate of a device: the large product has all of them.
        rate = row["product_gflop"] / row["traced_seconds"]["products"] * row["devices"]
        return [
            row["case"],
            ORDERS[row["order"]],
            str(row["devices"]),
            f"{row['median']:.3f}",
            f"{row['useful_gflop']:.1f}",
            f"{row['product_gflop']:.1f}",
            f"{row['moved_gigabytes']:.1f} GB",
            f"{row['share_of_matmul_rate']:.0%}",
            f"{row['share_of_memory_rate']:.1f}x",
            *(f"{share:.0%}" for share in shares),
            f"{1 - sum(shares):.0%}",
            f"{rate / row['matmul_gflop_per_second']:.0%}",
            f"{row['instructions']:,}",
            row["commit"][:10],
        ]

    rates = sorted({round(row["matmul_gflop_per_second"], -1) for row in rows})
    memory = sorted({round(row["memory_gigabytes_per_second"]) for row in rows})
    lines = [
        "Each meta-gradient by the default engine on all devices, beside the machine's ceilings,",
        f"{rates[0]:.0f} to {rates[-1]:.0f} GFLOP a second in a product of 4096 x 4096 and"
        f" {memory[0]} to {memory[-1]} GB a second",
        "in `a + 3 b` of large arrays. `useful` is the least number of GFLOP in products,",
        "`computed` what the program does of them: more where it computes again what it did not",
        "store. `moved` is what the instructions read and write; above 1x of the memory's rate it",
        "comes out of caches. The shares of the time are those of a trace, by what an instruction",
        "does: matrix products, other arithmetic, reductions, or moving numbers unchanged; `rest`",
        "is waiting and starting. A trace takes longer than the timed calls: a negative rest. The",
        "rate of the products alone is beside that of the large one: where it is about as high, a",
        "better kernel for products gains nothing, only less arithmetic and traffic around them.",
        "",
    ]
    return lines + table(heads, map(cells, rows))


def memory(rows: Sequence[Row]) -> list[str]:
    heads = ["case", "order", "library", "peak", "temporary, by the compiler"]

    def cells(row: Row) -> list[str]:
        compiled = row.get("temporary_bytes")
        return [
            row["case"],
            ORDERS[row["order"]],
            row["library"],
            row["failed"] if "failed" in row else f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{compiled / 1e6:,.0f} MB" if compiled else "",
        ]

    lines = [
        "What a call holds at most beyond what its process held before: parameters, data,",
        "compiled programs and the libraries themselves. Memory that a library has freed and",
        "kept is returned first, as far as it lets itself be returned.",
        "",
    ]
    return lines + table(heads, map(cells, rows))


def ideas(rows: Sequence[Row]) -> list[str]:
    heads = ["idea", "case", "library", "idea", "of the library"]

    def cells(row: Row) -> list[str]:
        seconds = row["seconds"]
        return [
            row["idea"],
            row["case"],
            f"{1e3 * seconds['library']:.1f} ms",
            f"{1e3 * seconds['idea']:.1f} ms",
            f"{row['ratio']:.2f}x",
        ]

    lines = [
        "What was tried and not adopted, in turn with what the library does. Fast-math changes the",
        "results, and one draw for all tasks changes which tasks are drawn; sampling is less than",
        "a hundredth of a meta-update. The first inner step is timed by itself: it is a fraction",
        "of a meta-update. Kernels in C++ for direct convolutions were not written: the products",
        "here are as fast as large ones (see the limits above). The library's own time of",
        "Mini-ImageNet beside fast-math was disturbed: the other rows have it at 1.3 s.",
        "",
    ]
    return lines + table(heads, map(cells, rows))


def streaming(rows: Sequence[Row]) -> list[str]:
    heads = ["case", "from memory", "from disk", "busy", "read a meta-step"]

    def cells(row: Row) -> list[str]:
        return [
            row["case"],
            f"{row['seconds_memory']:.3f} s",
            f"{row['seconds_disk']:.3f} s",
            f"{row['busy']:.1%}",
            f"{row['read_bytes_per_step'] / 1e6:.1f} MB",
        ]

    size, limit = rows[0]["image_bytes"] / 1e9, rows[0]["limit_bytes"] / 1e9
    lines = [
        f"First-order MAML by `train.fit` from a file with {size:.0f} GB of images, in a process"
        f" that may use {limit:.1f} GB",
        "of memory, the system's copies of the file's pages included, and from a few images in",
        "memory. `busy` is the ratio of the two times of a meta-step.",
        "",
    ]
    return lines + table(heads, map(cells, rows))
