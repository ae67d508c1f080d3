"""What is built for others to install, and what says how to cite it."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import metajax

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["pyproject.toml", "CITATION.cff"])
def test_all_files_state_one_version(name):
    (stated,) = re.findall(r'^version\s*[=:]\s*"?([\d.]+)"?$', (ROOT / name).read_text(), re.M)
    assert stated == metajax.__version__


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
    assert "experiments/sinusoid.py" in content
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in content)

    # Imported from the wheel alone; the dependencies are those of this environment.
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        + ["--target", str(tmp_path / "installed"), str(wheel)],
        check=True,
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); import metajax, "
    code += "metajax.data; print(metajax.__file__, metajax.__version__)"
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert str(tmp_path / "installed") in shown
    assert metajax.__version__ in shown
