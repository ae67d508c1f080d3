"""What is read of the machine."""

import pytest

from metajax import machine


@pytest.mark.parametrize(
    ("text", "size"), [("491520K\n", 480 * 2**20), ("", 0), ("many\n", 0), (None, 0)]
)
def test_the_size_of_the_last_cache_is_read_where_the_system_tells_it(text, size, tmp_path):
    if text is not None:
        (tmp_path / "size").write_text(text)
    assert machine.last_cache_bytes(str(tmp_path / "size")) == size
