"""Benchmarks, run as `python -m benchmarks.NAME`; `README.md` shows their results."""

import os

# Otherwise JAX reserves most of a GPU's memory, and PyTorch needs some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
