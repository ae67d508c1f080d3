"""Configuration of the site: `sphinx-build -W docs build/docs`."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]
# The notebooks import the library and the records of this checkout, and run on a CPU.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(DOCS.parent), os.environ.get("PYTHONPATH")])
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import metajax  # noqa: E402

project = "metajax"
author = "The metajax authors"
project_copyright = author
version = release = metajax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
    "mathml",
    "names",
    "notebooks",
    "pictures",
    "records",
]
exclude_patterns = ["_ext", "results.md"]  # `reproduction.md` contains the results.

# API reference, from the docstrings.
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Links into other projects' pages need the network, which a local build does without.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3/", None),
        "jax": ("https://docs.jax.dev/en/latest/", None),
        "optax": ("https://optax.readthedocs.io/en/latest/", None),
    }
    if os.environ.get("DOCS_INTERSPHINX")
    else {}
)

# Markdown pages and notebooks.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "metajax"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
