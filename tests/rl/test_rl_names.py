"""Old names, the README's names, and which way the modules depend on each other."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from metajax import rl

PACKAGE = Path(rl.__file__).parent
README = (Path(__file__).parents[2] / "README.md").read_text()
# Each may import the ones before it.
ORDER = ["base", "arguments", "policies", "rollout", "surrogates", "inner", "objective", "learner"]
ORDER += [
    "trpo",
    "promp",
    "reptile",
    "wrappers",
    "trials",
    "gymnax_env",
    "brax_env",
    "navigation",
]
ORDER += ["cart_pole", "xland", "robots", "locomotion", "playground"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("adaptation", "inner_loop"),
        ("Adaptation", "InnerLoop"),
        ("trust_region", "maml_trpo"),
        ("clipped", "promp"),
        ("displaced", "reptile"),
    ],
)
def test_an_old_name_warns_and_is_the_new_object(old, new):
    with pytest.warns(DeprecationWarning, match=rf"metajax\.rl\.{old} is now metajax\.rl\.{new};"):
        found = getattr(rl, old)
    assert found is vars(rl)[new]
    assert old not in vars(rl)


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'metajax\.rl' has no attribute 'ppo'"):
        _ = rl.ppo


def test_the_names_of_the_readme_exist():
    section = README.split("## Meta-reinforcement learning")[1].split("\n## ")[0]
    names = re.findall(r"`(?:metajax\.)?rl\.([A-Za-z_.]+)`", section)
    assert {"inner_loop", "maml_trpo", "promp", "reptile", "navigation"} <= set(names)
    for name in names:
        assert name in vars(rl) or importlib.import_module(f"metajax.rl.{name}")


def test_modules_import_downward():
    assert sorted(ORDER) == sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")
    for index, name in enumerate(ORDER):
        below = {f"metajax.rl.{module}" for module in ORDER[:index]}
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("metajax.rl"):
                assert node.module in below, name
