"""Strict modes for every test: eight fake devices, no silent rank promotion."""

import os
from pathlib import Path

import pytest

# Read by JAX when it is first imported, which is below.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Tests neither read nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def omniglot_data_dir() -> str:
    """The folder of prepared TFDS data; tests on real drawings are skipped without one."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "tfds"
    for candidate in (os.environ.get("TFDS_DATA_DIR"), beside):
        if candidate and (Path(candidate) / "omniglot" / "3.0.0").is_dir():
            return str(candidate)
    pytest.skip("no prepared Omniglot: set TFDS_DATA_DIR")


@pytest.fixture
def float64():
    """Double precision for the length of a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
