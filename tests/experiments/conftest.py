"""Data for the launchers of image classification."""

import jax
import numpy as np
import pytest

from experiments import few_shot
from metajax.tasks import mini_imagenet
from metajax.tasks import omniglot as drawings


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    """What launchers put together is tested here: a few updates want no optimized program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def random_images(monkeypatch):
    """Replaces both data sets by small random images."""
    rng = np.random.default_rng(0)

    def loaded(kind, shape):
        parts = [rng.integers(0, 256, (n, *shape), np.uint8) for n in (6, 6, 7)]
        names = [tuple(f"{part}{i}" for i in range(n)) for part, n in zip("tvx", (6, 6, 7))]  # noqa: B905
        return kind(*parts, *names)

    color = loaded(mini_imagenet.MiniImageNet, (40, 16, 16, 3))
    grey = loaded(drawings.Omniglot, (20, 16, 16, 1))
    monkeypatch.setattr(few_shot.mini_imagenet, "load", lambda *args: color)
    monkeypatch.setattr(few_shot.omniglot, "load", lambda *args, **kwargs: grey)
    return {"color": color, "grey": grey}
