"""The launchers; `python -m experiments` lists them."""

from metajax.extras import require

require("a launcher", "experiments")
