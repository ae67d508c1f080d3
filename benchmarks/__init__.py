"""What metajax costs, measured; `python -m benchmarks.NAME`, rendered into `README.md`."""

import os

# Most of a GPU's memory is JAX's from its start otherwise, and PyTorch needs some beside it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
