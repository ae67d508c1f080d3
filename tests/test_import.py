"""What importing the library costs, and which way its modules depend on each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metajax

PACKAGE = Path(metajax.__file__).parent
HEAVY = ("tensorflow", "tensorflow_datasets", "array_record", "PIL", "tqdm", "gymnax", "brax")
HEAVY += ("orbax", "tensorboardX", "flax")
# Each may import the ones before it.
CORE = ["base", "machine", "losses", "batches", "gradients", "optimizers", "arguments", "checks"]
CORE += ["remat", "inner", "objectives", "parallel", "learner", "evaluate", "algorithms", "family"]


def test_importing_the_library_loads_nothing_heavy():
    code = f"import sys, metajax; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(("old", "new"), [("adapting", "adapt_only"), ("counting", "count_steps")])
def test_an_old_name_warns_and_is_the_new_function(old, new):
    with pytest.warns(DeprecationWarning, match=rf"metajax\.{old} is now metajax\.{new};"):
        found = getattr(metajax, old)
    assert found is vars(metajax)[new]
    assert old not in vars(metajax)


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'metajax' has no attribute 'mamml'"):
        _ = metajax.mamml


def test_meta_reinforcement_learning_loads_no_engine():
    code = "import sys, metajax.rl; print([m for m in ('gymnax', 'brax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in ("metajax", "experiments"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_downward_and_little(name):
    below = {f"metajax.{module}" for module in CORE[: CORE.index(name)]}
    for module in imports(PACKAGE / f"{name}.py"):
        top = module.split(".")[0]
        if top == "metajax":
            assert module in below
        else:
            assert top in {"jax", "optax", "numpy", "__future__"} | sys.stdlib_module_names


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("nn", ("metajax.data", "metajax.tasks", "metajax.train", "metajax.rl")),
        ("data", ("metajax.nn", "metajax.tasks", "metajax.train", "metajax.rl")),
        ("tasks", ("metajax.nn", "metajax.train", "metajax.rl")),
        ("rl", ("metajax.data", "metajax.nn", "metajax.tasks", "metajax.train")),
    ],
)
def test_leaves_do_not_know_what_stands_above_them(folder, forbidden):
    for path in (PACKAGE / folder).glob("*.py"):
        assert not [m for m in imports(path) if m.startswith(forbidden)]


def test_every_public_name_has_a_docstring():
    names = [n for n in vars(metajax) if not n.startswith("_")]
    missing = [n for n in names if not (getattr(metajax, n).__doc__ or "").strip()]
    assert not missing


def test_the_launchers_import_downward():
    order = [
        "settings",
        "plots",
        "tables",
        "animation",
        "processes",
        "devices",
        "command",
        "skeleton",
        "supervised",
    ]
    order += [
        "classification",
        "protocols",
        "baselines",
        "image_data",
        "few_shot",
        "agents",
        "meta_rl",
        "reptile_runs",
    ]
    folder = PACKAGE.parent / "experiments"
    for path in folder.glob("*.py"):
        known = order[: order.index(path.stem)] if path.stem in order else None
        for module in imports(path):
            package, _, name = module.partition(".")
            if package == "experiments" and name and known is not None:
                assert name in known, f"{path.stem} imports {name}"
            assert package != "benchmarks"
    for path in PACKAGE.rglob("*.py"):
        assert not any(module.startswith("experiments") for module in imports(path))


def test_no_file_is_long():
    root = PACKAGE.parent
    for folder in ("metajax", "experiments", "benchmarks", "tests"):
        for path in (root / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path
