"""The campaign of faults: what it draws, and what it notices."""

import collections

import numpy as np
import pytest

from benchmarks import faults
from benchmarks.fault_kinds import KINDS, MOMENTS


def test_a_fault_is_drawn_by_its_number_and_all_kinds_occur():
    drawn = [faults.draw(number, 0) for number in range(200)]
    assert drawn[17] == faults.draw(17, 0) != faults.draw(17, 1)
    counts = collections.Counter(fault.kind for fault in drawn)
    assert counts.keys() == KINDS.keys()
    assert min(counts.values()) >= 5
    assert {fault.moment for fault in drawn} == MOMENTS.keys()
    cases = {(fault.experiment, fault.processes) for fault in drawn}
    assert cases == {(name, count) for name in faults.EXPERIMENTS for count in (1, 2)}
    for fault in drawn:
        if fault.kind == "lost process":
            assert fault.processes == 2
        if fault.kind in ("truncated file", "flipped bit"):
            assert fault.moment in faults.AFTER_CHECKPOINTS


def outcome(**changes):
    values = {
        "arrays": {"a": np.zeros(3, np.float32), "b": np.ones(2)},
        "lines": ['{"step": 1}', '{"step": 2}'],
        "evaluation": {"mse": [1.0]},
    }
    return faults.Outcome(**{**values, **changes})


BIT = np.zeros(3, np.float32)
BIT.view(np.uint32)[1] = 1
DIFFERENCES = {
    "a bit": ({"arrays": {"a": BIT, "b": np.ones(2)}}, {"differing_arrays": ["a"]}),
    "a sign of zero": (
        {"arrays": {"a": -np.zeros(3, np.float32), "b": np.ones(2)}},
        {"differing_arrays": ["a"]},
    ),
    "an array is missing": (
        {"arrays": {"a": np.zeros(3, np.float32)}},
        {"differing_arrays": ["b"]},
    ),
    "a line is lost": ({"lines": ['{"step": 1}']}, {"lost_lines": 1}),
    "a line is doubled": (
        {"lines": ['{"step": 1}', '{"step": 1}', '{"step": 2}']},
        {"other_lines": 1},
    ),
    "another order": ({"lines": ['{"step": 2}', '{"step": 1}']}, {"ordered": False}),
    "another evaluation": ({"evaluation": {"mse": [1.5]}}, {"evaluation_equal": False}),
}
GOOD = {"kind": "SIGKILL", "ended": True, "refused": True, "tracebacks": 0}


@pytest.mark.parametrize("difference", DIFFERENCES.values(), ids=DIFFERENCES)
def test_every_difference_is_noticed(difference):
    changes, expected = difference
    found = faults.compare(outcome(), outcome(**changes))
    assert {name: found[name] for name in expected} == expected
    assert not faults.passed({**GOOD, **found})


def test_equal_outcomes_pass_unless_a_command_failed():
    row = {**GOOD, **faults.compare(outcome(), outcome())}
    assert faults.passed(row)
    assert (row["arrays"], row["values"]) == (2, 5)
    for name, value in (("ended", False), ("refused", False), ("tracebacks", 1)):
        assert not faults.passed({**row, name: value})
    heads, kind, total = faults.summary([row, {**row, "tracebacks": 1}])
    assert kind[:3] == ("SIGKILL", "2", "1")
    assert total[1:] == kind[1:]
    assert len(heads) == len(total)
