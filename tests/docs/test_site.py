"""The site: its reference is complete, its notebooks run."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ["metajax", *(f"metajax.{name}" for name in ("data", "nn", "rl", "tasks", "train"))]
LEAVES = [f"metajax.rl.{name}" for name in ("cart_pole", "xland", "navigation", "locomotion")]
# Old places and names, which warn.
DEPRECATED = {
    *(f"metajax.tasks.{name}" for name in ("audit", "cifar", "mini_imagenet", "omniglot", "place")),
}
REFERENCE = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.rst")))
# What a notebook assigns, at the size of a test.
SHORT = {"num_updates": 2, "step_counts": "(1, 2)"}
NOTEBOOKS = [DOCS / "how_to.md", *sorted((DOCS / "tutorials").glob("*.md"))]
CELL = re.compile(
    r"^```\{code-cell\}[^\n]*\n(?::\w[^\n]*\n)*\n?(.*?)^```", flags=re.DOTALL | re.MULTILINE
)


def documented():
    """The names on the pages of the reference, with their package."""
    names = {name for _, name in re.findall(r"^\.\. auto(\w+):: (\S+)$", REFERENCE, re.MULTILINE)}
    for page in REFERENCE.split(".. module:: ")[1:]:
        package = page.split()[0]
        names |= {f"{package}.{name}" for name in re.findall(r"^\.\. data:: (\S+)", page, re.M)}
    return names


def public(package):
    """The names that a package re-exports, `from module import name as name`."""
    module = importlib.import_module(package)
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == alias.asname:
                    yield f"{package}.{alias.name}", getattr(module, alias.name)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package):
    names = documented()
    missing = [
        name
        for name, value in public(package)
        if not inspect.ismodule(value) and name not in names | DEPRECATED
    ]
    assert not missing, f"add them to docs/api: {missing}"


def test_the_reference_has_no_other_names():
    known = {name for package in PACKAGES for name, _ in public(package)} | set(LEAVES)
    assert documented() - known == set()


def test_every_package_has_a_page():
    assert set(re.findall(r"^\.\. module:: (\S+)", REFERENCE, re.MULTILINE)) == set(PACKAGES)
    modules = {name for package in PACKAGES for name, v in public(package) if inspect.ismodule(v)}
    pages = documented() | set(PACKAGES)
    assert modules - DEPRECATED - pages == {"metajax.tasks.few_shot"}  # its names are re-exported


def shortened(cell):
    for name, value in SHORT.items():
        cell = re.sub(rf"^{name} = .*$", f"{name} = {value}", cell, flags=re.MULTILINE)
    # The devices of a process are fixed once JAX has been used.
    return re.sub(r"^jax\.config\.update\(.*$", "", cell, flags=re.MULTILINE)


LONG = ("engines", "adapters", "navigation", "how_to", "bilevel")


def costly(path):
    return pytest.param(path, marks=pytest.mark.slow) if path.stem in LONG else path


@pytest.mark.parametrize("path", [costly(path) for path in NOTEBOOKS], ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyplot, "show", lambda: None)
    text = path.read_text()
    cells = CELL.findall(text)
    assert len(cells) == text.count("```{code-cell}")
    names = {"__name__": "__main__"}
    with jax.numpy_rank_promotion("allow"):
        for cell in cells:
            exec(compile(shortened(cell), str(path), "exec"), names)
    pyplot.close("all")


def test_notebooks_are_pages():
    index = (DOCS / "index.md").read_text()
    for path in NOTEBOOKS:
        assert f"\n{path.relative_to(DOCS).with_suffix('')}\n" in index


def test_a_notebook_begins_with_the_installation(monkeypatch):
    pytest.importorskip("myst_nb")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/metajax")
    notebooks = importlib.reload(importlib.import_module("notebooks"))
    text = (DOCS / "tutorials" / "sine_waves.md").read_text()
    first, *others = [cell for cell in notebooks.notebook(text).cells if cell.cell_type == "code"]
    assert first.source.split("\n") == [
        "!git clone --quiet --depth 1 https://github.com/owner/metajax metajax",
        "%cd metajax",
        '%pip install --quiet -e ".[docs]"',
    ]
    assert [cell.source for cell in others] == [cell.strip() for cell in CELL.findall(text)]
