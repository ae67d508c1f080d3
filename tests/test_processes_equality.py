"""The runs of the papers over processes and devices: 1 x 4, 2 x 2 and 4 x 1."""

import pytest

from benchmarks import processes
from benchmarks.process_worker import CASES


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_processes_and_devices_change_nothing_beyond_rounding(case):
    rows = processes.equality(case)
    assert [(row["processes"], row["devices"]) for row in rows] == [(1, 1), (2, 2), (4, 1)]
    for row in rows:  # the trust region of navigation multiplies rounding
        assert row["difference"] < (1e-6 if case == "navigation" else 1e-12)


@pytest.mark.slow
def test_weak_scaling_is_measured():
    one, two = processes.weak_scaling(2)
    assert (one["tasks"], two["tasks"]) == (16, 32)
    assert one["times_the_tasks"] == 1
    assert two["times_the_tasks"] == pytest.approx(2 * one["seconds"] / two["seconds"])
