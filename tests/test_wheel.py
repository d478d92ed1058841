"""The wheel: both packages and nothing else, of use without any framework, tested from outside of the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ["test_curves.py", "test_logs.py", "test_stores.py"]
WITHOUT_FRAMEWORKS = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "tensorflow", "keras", "flax", "optax", "art", "tqdm", "matplotlib"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import numpy as np, jax, jaxsmooth, bridges
assert "site" in jaxsmooth.__file__ and "site" in bridges.__file__, jaxsmooth.__file__
result = jaxsmooth.certify(lambda x: x, jaxsmooth.Gaussian(0.2), jax.random.key(0), np.eye(3), n=100)
print(result.label.tolist())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the wheel and a folder that it is installed in."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    copy = place / "source"
    ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", place, copy], check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", place / "site", wheel], check=True)
    return wheel, place / "site"


def test_it_has_both_packages_and_nothing_else(site):
    names = zipfile.ZipFile(site[0]).namelist()
    assert {name.split("/")[0] for name in names} == {"jaxsmooth", "bridges", "jaxsmooth-0.1.0.dist-info"}
    assert {Path(name).suffix for name in names if "dist-info" not in name} == {".py", ".typed"}
    for package in ("jaxsmooth", "bridges"):
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")} == sources
        assert f"{package}/py.typed" in names


def test_it_certifies_without_any_framework(site, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FRAMEWORKS],
        env={**os.environ, "PYTHONPATH": str(site[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[0, 1, 2]\n", done.stderr


def test_its_tests_pass_outside_of_the_repository(site, tmp_path):
    (tmp_path / "tests").mkdir()
    for name in CORE:
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        env={**os.environ, "PYTHONPATH": str(site[1]), "PYTEST_ADDOPTS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
