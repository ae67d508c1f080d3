"""What a compiled program does, from its text: bytes, instructions, and their kinds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
# Instructions that compute nothing: names for arrays that are there already.
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"}
# Those that only move or place numbers.
MOVING = {
    *FREE,
    *("broadcast", "concatenate", "copy", "dynamic-slice", "dynamic-update-slice", "gather"),
    *("iota", "pad", "reshape", "reverse", "slice", "transpose"),
}
SLICING = {"dynamic-slice", "slice", "gather"}
PRODUCTS = {"dot", "convolution"}
REDUCTIONS = {"reduce", "reduce-window", "select-and-scatter", "scatter"}
CONTROL = {"while", "call", "conditional"}

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\)) -> .* \{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """An instruction of a computation.

    Attributes:
      name: unique in its program.
      opcode: what it does.
      size: the bytes of its result.
      operands: the names of its operands.
      called: the computations that it calls.
      trips: how often it does: of a loop, the number of its rounds, where that is known.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    size: float
    operands: Sequence[str]
    called: Sequence[str]
    trips: int
    root: bool


class Program(NamedTuple):
    """The computations of a program, by name, and the name of the first."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str


def parse(text: str) -> Program:
    """Parses the text of a compiled program."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            current.append(_instruction(*found.groups()))
    return Program(computations, entry)


def _instruction(root: str | None, name: str, shape: str, opcode: str, rest: str) -> Instruction:
    operands = rest[: rest.index(")")]  # of names, which have no parentheses
    branches = _BRANCHES.search(rest)
    called = [*_CALLED.findall(rest)]
    if branches:
        called += re.findall(r"[\w.\-]+", branches[1])
    trips = _TRIPS.search(rest)
    return Instruction(
        name=name,
        opcode=opcode,
        size=_bytes(shape),
        operands=re.findall(r"%([\w.\-]+)", operands),
        called=called,
        trips=int(trips[1]) if trips else 1,
        root=bool(root),
    )


def _bytes(shape: str) -> float:
    return sum(
        BITS.get(kind, int(re.sub(r"\D", "", kind) or 0))
        / 8
        * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in _ARRAY.findall(shape)
    )


def executed(program: Program) -> Iterator[tuple[Instruction, int]]:
    """The instructions that are executed, each with how often; a fusion is one of them."""

    def visit(name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for each in program.computations[name]:
            if each.opcode in CONTROL:
                for called in each.called:
                    yield from visit(called, times * each.trips)
            elif each.opcode not in FREE:
                yield each, times

    yield from visit(program.entry, 1)


def moved_bytes(program: Program) -> float:
    """The bytes that all instructions read and write, wherever they are: in a cache or in memory.

    Of an array of which an instruction takes a slice, only the slice counts.
    """
    sizes = {each.name: each.size for body in program.computations.values() for each in body}
    return sum(times * _moved(program, each, sizes) for each, times in executed(program))


def _moved(program: Program, each: Instruction, sizes: Mapping[str, float]) -> float:
    if each.opcode == "fusion":
        body = program.computations[each.called[0]]
        read = sum(_read(one, body, sizes) for one in body if one.opcode == "parameter")
        return read + _written(body, sizes)
    if each.opcode in SLICING:
        return 2 * each.size
    if each.opcode == "dynamic-update-slice":
        return 2 * sizes[each.operands[1]]
    return each.size + sum(sizes[operand] for operand in each.operands)


def _read(parameter: Instruction, body: Sequence[Instruction], sizes: Mapping[str, float]) -> float:
    """The bytes of a parameter that a fusion reads."""
    total, names = 0.0, {parameter.name}
    for each in body:
        used = names.intersection(each.operands)
        if not used:
            continue
        if each.opcode == "bitcast":
            names.add(each.name)
        elif each.opcode in SLICING and each.operands[0] in names:
            total += each.size
        elif each.opcode == "dynamic-update-slice" and each.operands[0] in names:
            pass  # it is written in place
        else:
            return parameter.size
    return min(total, parameter.size)


def _written(body: Sequence[Instruction], sizes: Mapping[str, float]) -> float:
    """The bytes that a fusion writes."""
    by_name = {each.name: each for each in body}
    (root,) = (each for each in body if each.root)

    def written(each: Instruction) -> float:
        if each.opcode == "tuple":
            return sum(written(by_name[operand]) for operand in each.operands)
        if each.opcode == "bitcast" and each.operands[0] in by_name:
            return written(by_name[each.operands[0]])
        if each.opcode == "dynamic-update-slice":
            return sizes[each.operands[1]]
        return each.size

    return written(root)


def kinds(program: Program) -> dict[str, str]:
    """What each instruction spends its time on, by name.

    `products` of matrices, `reductions`, `moves` of numbers that stay as they are, or
    `elementwise`; a fusion has the first of them that is in it. Control has no entry.
    """
    found = {}
    for body in program.computations.values():
        for each in body:
            if each.opcode in CONTROL:
                continue
            inside = {each.opcode}
            if each.opcode == "fusion":
                inside = {one.opcode for one in program.computations[each.called[0]]}
            found[each.name] = _kind(inside)
    return found


def _kind(opcodes: set[str]) -> str:
    if opcodes & PRODUCTS:
        return "products"
    if opcodes & REDUCTIONS:
        return "reductions"
    return "moves" if opcodes <= MOVING else "elementwise"
