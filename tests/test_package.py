"""What is built for others to install, and what says how to cite it."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import pytest

import metajax
from metajax import __main__ as command

ROOT = Path(__file__).parents[1]


def test_the_version_to_cite_is_that_of_the_library():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r'^version: "?([\d.]+)"?$', citation, re.M) == [metajax.__version__]


@pytest.mark.slow
def test_wheel_and_sdist_pass_the_check_of_the_index_and_the_wheel_installs(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("twine")
    # Of a copy, so that nothing is left in the checkout.
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    built = tmp_path / "dist"
    command = [sys.executable, "-m", "build", "--outdir", str(built), str(tmp_path / "clone")]
    subprocess.run(command, check=True)
    files = sorted(built.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = built.glob("*.whl")
    content = zipfile.ZipFile(wheel).namelist()
    assert "metajax/py.typed" in content
    # Nothing else: the launchers stay in the repository, and the command says so.
    assert {name.split("/")[0].partition("-")[0] for name in content} == {"metajax"}

    # Imported from the wheel alone; the dependencies are those of this environment.
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        + ["--target", str(tmp_path / "installed"), str(wheel)],
        check=True,
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); import metajax, "
    code += "metajax.data, metajax.__main__ as command; print(metajax.__file__); command.main()"
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert str(tmp_path / "installed") in shown
    assert f"metajax {metajax.__version__}, Python" in shown
    assert "Clone the repository of metajax" in shown


def test_the_command_starts_launchers_from_any_folder(tmp_path):
    def said(*words):
        return subprocess.run(
            [sys.executable, "-m", "metajax", *words], capture_output=True, text=True, cwd=tmp_path
        )

    assert "usage: python -m experiments.sinusoid" in said("sinusoid", "--help").stdout
    assert said("sinusoid", "--shots=ten").stderr.startswith("error: flag --shots=ten")
    wrong = said("sinsoid")
    assert wrong.returncode
    assert wrong.stderr == "error: there is no launcher sinsoid: `metajax list` lists them.\n"
    for name in ("settings", "few_shot", "jobs"):  # modules that do nothing of their own
        assert f"there is no launcher {name}" in said(name).stderr


# Tries modules while others cannot be found, and prints the last line of what each raises.
TRIALS = """
import contextlib, importlib, importlib.machinery, json, sys

class Hidden:
    names = ()
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, hidden := Hidden())
said = {}
for module, names in json.loads(sys.argv[1]):
    hidden.names = names
    gone = ("metajax.train", "experiments", *names)
    for name in [each for each in sys.modules if each.startswith(gone)]:
        del sys.modules[name]
    try:
        importlib.import_module(module)
    except Exception as error:
        said[module] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
HIDDEN = {
    "metajax.train": (["filelock"], 'metajax.train needs filelock: pip install "metajax[exp'),
    "metajax.rl.navigation": (["gymnax"], 'needs gymnax .*: pip install "metajax\\[rl\\]"'),
    "metajax.rl.locomotion": (["brax"], 'needs Brax .*: pip install "metajax\\[rl\\]"'),
    **{
        f"experiments.{name}": (
            ["matplotlib", "orbax"],
            'a launcher needs matplotlib, orbax.checkpoint: pip install "metajax[experiments]"',
        )
        for name in ("__main__", "sinusoid", "omniglot", "navigation", "compare", "explore")
    },
}


def test_a_missing_extra_is_named_in_one_line():
    trials = json.dumps([(module, names) for module, (names, _) in HIDDEN.items()])
    done = subprocess.run(
        [sys.executable, "-c", TRIALS, trials], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for module, (_, message) in HIDDEN.items():
        assert said[module].startswith("ImportError: "), said[module]
        assert "\n" not in said[module]
        assert message in said[module] or re.search(message, said[module]), said[module]


def test_the_core_needs_no_extra():
    modules = ["metajax", "metajax.nn", "metajax.data", "metajax.tasks", "metajax.rl"]
    names = ["PIL", "brax", "filelock", "gymnax", "matplotlib", "orbax", "safetensors"]
    names += ["tensorboardX", "tensorflow_datasets", "tqdm"]
    trials = json.dumps([(module, names) for module in modules])
    shown = subprocess.check_output([sys.executable, "-c", TRIALS, trials], text=True, cwd=ROOT)
    assert json.loads(shown) == {}


def test_the_command_shows_versions_devices_and_extras(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "brax", None)
    monkeypatch.setattr(sys, "argv", ["metajax"])
    command.main()
    shown = capsys.readouterr().out
    assert shown.startswith(f"metajax {metajax.__version__}, Python")
    assert f"devices: {jax.devices()[0]}" in shown
    assert "extra experiments: installed" in shown
    assert re.search(r'extra rl: without (.*, )?brax.*: pip install "metajax\[rl\]"', shown)
    assert "`metajax list` lists them" in shown
