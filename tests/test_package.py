"""The package as a whole: what importing it loads and touches, what it offers, what its README says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jaxsmooth

ROOT = Path(__file__).parent.parent
PROBE = """
import json, os, sys, threading
import jax, numpy, scipy.stats, chex
config, environment = dict(jax.config.values), dict(os.environ)
before = set(sys.modules)
import jaxsmooth
print(json.dumps({
    "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "modules": sorted(name for name in set(sys.modules) - before),
    "untouched": [config == dict(jax.config.values), environment == dict(os.environ), threading.active_count() == 1],
}))
"""


def test_import_loads_no_framework_and_touches_nothing():
    probe = json.loads(subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=True).stdout)
    assert probe["untouched"] == [True, True, True]
    assert not set(probe["loaded"]) & {
        "torch",
        "tensorflow",
        "keras",
        "flax",
        "optax",
        "art",
        "bridges",
        "tqdm",
        "matplotlib",
    }
    # Beyond jax, scipy and chex, importing costs the files of the package alone.
    assert [name for name in probe["modules"] if not name.startswith(("jaxsmooth", "scipy.", "jax.", "decimal"))] == []


def test_every_public_name_is_documented_and_sorted():
    assert jaxsmooth.__all__ == sorted(jaxsmooth.__all__)
    for name in jaxsmooth.__all__:
        if name != "ABSTAIN":
            assert getattr(jaxsmooth, name).__doc__


def test_the_core_imports_no_bridge():
    for path in (ROOT / "jaxsmooth").rglob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert not set(imported) & {"bridges", "torch", "tensorflow", "keras", "flax", "art"}, path


def test_the_python_in_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert "Array" not in capsys.readouterr().err
