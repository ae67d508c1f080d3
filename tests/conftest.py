"""Strict modes for every test: eight fake devices, no silent rank promotion."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

# Read by JAX when it is first imported, which is below.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most tests run a program once: compiling it takes longer than what optimizing it saves.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Compiling in parallel parts and, before jaxlib 0.11, by fusion emitters takes half as long again.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" if int(version("jaxlib").split(".")[1]) < 11 else "",
    ]
)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # from now on a launcher cannot change their number

MINI_IMAGENET_FILES = ("train.csv", "mini-imagenet-cache-train.pkl")


def pytest_configure(config):
    """Gives all workers one cache of converted images, so that the user's is not touched."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="metajax-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["XDG_CACHE_HOME"] = folder.name


@pytest.fixture(scope="session", autouse=True)
def private_programs(tmp_path_factory):
    """Compiled programs are shared within a worker and the processes that its tests start."""
    programs = str(tmp_path_factory.mktemp("programs"))
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", programs)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
        yield


@pytest.fixture(autouse=True)
def optimized_programs(request):
    """Lets the compiler optimize what a test marked `optimized` measures."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    asked = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    jax.config.update("jax_disable_most_optimizations", asked.lower() in ("1", "true"))


@pytest.fixture(scope="session")
def omniglot_data_dir() -> str:
    """The folder of prepared TFDS data; tests on real drawings are skipped without one."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "tfds"
    for candidate in (os.environ.get("TFDS_DATA_DIR"), beside):
        if candidate and (Path(candidate) / "omniglot" / "3.0.0").is_dir():
            return str(candidate)
    pytest.skip("no prepared Omniglot: set TFDS_DATA_DIR")


@pytest.fixture(scope="session")
def mini_imagenet_data_dir() -> str:
    """The folder of Mini-ImageNet; tests on real images are skipped without one."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "miniimagenet"
    for candidate in (os.environ.get("MINI_IMAGENET_DIR"), beside):
        if candidate and any((Path(candidate) / name).is_file() for name in MINI_IMAGENET_FILES):
            return str(candidate)
    pytest.skip("no Mini-ImageNet: set MINI_IMAGENET_DIR")


@pytest.fixture
def float64():
    """Double precision for the length of a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
