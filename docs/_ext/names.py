"""Single backticks: a link if they name a documented object, and code otherwise.

The docstrings write `inner_loop`, `metajax.maml`, `rl.sampler` and `(params, batch, rng)` alike. A
name that begins with a package of the library must exist, or the build warns.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
PACKAGES = ("data", "nn", "rl", "tasks", "train")
FILES = (".csv", ".json", ".pkl")
PREFIXES = ("metajax.", *(f"{package}." for package in PACKAGES))


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> Any:
    """A reference that is not relative to the page's module, such as `rl.sampler`."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    # A call, such as `second_order(remat=True)`, links to its function.
    name = target.partition("(")[0]
    domain = env.domains["py"]
    places = [name, f"metajax.{name}", f"{node.get('py:module') or 'metajax'}.{name}"]
    places += [f"metajax.{package}.{name}" for package in PACKAGES]
    for place in places:
        if name.replace(".", "").replace("_", "").isalnum() and place in domain.objects:
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", place, node, content
            )
    if node["reftype"] == "obj" and name.startswith(PREFIXES) and not name.endswith(FILES):
        LOGGER.warning("no documented object is called %r", target, location=node)
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    app.config.default_role = "py:obj"
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
