"""The page of presets and their sources: its values are those of the presets."""

import re
from pathlib import Path

import pytest

from experiments import miniimagenet, navigation, omniglot, sinusoid

PAGE = Path(__file__).parents[2] / "docs" / "protocols.md"
LAUNCHERS = {
    "": sinusoid,
    "omniglot": omniglot,
    "miniimagenet": miniimagenet,
    "navigation": navigation,
}
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| (\w+: )?\w+2018|\| (\w+: )?finn2017", line)
]


def test_every_table_is_read():
    assert {row[0].rpartition(": ")[0] for row in ROWS} == set(LAUNCHERS)
    assert len(ROWS) == PAGE.read_text().count("\n| ") - 4  # without the headings


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]}")
def test_a_value_is_the_preset_s(row):
    name, setting, *_, value = row
    launcher, _, preset = name.rpartition(": ")
    settings = LAUNCHERS[launcher].EXPERIMENT.presets[preset]
    assert getattr(settings, setting) == float(value.replace(",", ""))
