"""Offers every page with code as a notebook: to download, and, of a known repository, in Colab.

Each notebook begins with a cell that installs what its page needs from the repository. The
workflow that publishes the site pushes the notebooks to the branch `notebooks`, where Colab finds
them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from sphinx.application import Sphinx

# Set on GitHub to `OWNER/NAME`.
REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# The library, its records and what the pages need: from the repository, or from this checkout.
INSTALL = f"""\
!git clone --quiet --depth 1 https://github.com/{REPOSITORY} metajax
%cd metajax
%pip install --quiet -e ".[docs]\""""
LOCAL_INSTALL = f'%pip install --quiet -e "{Path(__file__).parents[2]}[docs]"'


def offer(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links to the notebook below the title of a page with code."""
    if "{code-cell}" not in source[0] or app.builder.format != "html":
        return
    file = f"notebooks/{docname}.ipynb"
    up = "../" * docname.count("/")
    links = f'<a href="{up}{file}" download>Download as a notebook</a>'
    if REPOSITORY:
        colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/notebooks"
        badge = f'<img src="{BADGE}" alt="Open in Colab">'
        links = f'<a href="{colab}/{docname}.ipynb">{badge}</a> {links}'
    head, title, rest = source[0].partition("\n# ")
    title_line, _, body = rest.partition("\n")
    block = f'\n\n```{{raw}} html\n<p class="notebook">{links}</p>\n```\n'
    source[0] = f"{head}{title}{title_line}{block}{body}"


def notebook(text: str) -> Any:
    """A page as a notebook that begins with the installation."""
    found = read_myst_markdown_notebook(text)
    install = INSTALL if REPOSITORY else LOCAL_INSTALL
    found.cells.insert(0, nbformat.v4.new_code_cell(install, id="install"))
    return found


def write(app: Sphinx, error: Exception | None) -> None:
    """Writes the notebooks beside the pages."""
    if error is not None or app.builder.format != "html":
        return
    for docname in app.env.found_docs:
        text = Path(app.env.doc2path(docname)).read_text(encoding="utf-8")
        if "{code-cell}" in text:
            path = Path(app.outdir) / "notebooks" / f"{docname}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook(text), path)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", offer)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
