"""The package as a whole: what importing it loads and touches, what it offers, what its README says."""

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import jaxsmooth
from tests.slow import LIST

ROOT = Path(__file__).parent.parent
PROBE = """
import json, os, sys, threading
import jax, numpy, scipy.special, scipy.fft, chex
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
    # Beyond jax, scipy.special and chex, importing loads only the files of the package. The rest of SciPy takes longer
    # to load than they do, and comes with the first plan.
    assert "scipy.stats" not in probe["modules"]
    known = ("jaxsmooth", "scipy.", "jax.", "decimal", "fractions")
    assert [name for name in probe["modules"] if not name.startswith(known)] == []


def test_every_public_name_is_documented_and_sorted():
    assert jaxsmooth.__all__ == sorted(jaxsmooth.__all__)
    for name in jaxsmooth.__all__:
        if name != "ABSTAIN":
            assert getattr(jaxsmooth, name).__doc__


def test_the_core_imports_no_bridge():
    for path in (ROOT / "jaxsmooth").rglob("*.py"):
        if path.name == "__main__.py":  # the command, which nothing imports
            continue
        imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert not set(imported) & {"bridges", "torch", "tensorflow", "keras", "flax", "art"}, path


def run_python(page, *, together):
    """Run the blocks of Python in a page, together or each by itself, and return their names."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = [{}]
    for block in blocks:
        names.append(dict(names[-1]) if together else {})
        exec(block, names[-1])
    return names[1:]


TOGETHER = ("larger_radii", "reports", "what_can_be_certified")  # pages whose blocks build on each other


@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        ("guarantees", 1),
        ("devices", 1),
        ("extending", 2),
        ("classes", 3),
        ("migrating", 0),
        ("modes", 1),
        ("reports", 4),
        ("runs", 1),
        ("models", 4),
        ("training", 2),
        ("larger_radii", 5),
        ("what_can_be_certified", 4),
    ],
)
def test_the_python_in_the_guides_runs(page, blocks):
    names = run_python(ROOT / "examples" / "guides" / f"{page}.md", together=page in TOGETHER)
    assert len(names) == blocks
    if page == "larger_radii":
        assert names[0]["result"].label[0] == 1
        assert names[0]["step"] == (259, pytest.approx(0.5024, abs=1e-4))
        assert float(names[1]["error"]) < 0.2
        assert names[2]["chosen"].tolist() == [0, 1]
        assert (names[3]["lost"] > 0).all()
        radii = names[4]["radii"]
        assert radii[0][1] < radii[1][1] < radii[2][1]
        assert "k 2" in names[4]["table"]
    if page == "what_can_be_certified":
        assert names[0]["changes"].tolist() == [3, 5]
        assert names[1]["passes"] == 255
        assert names[1]["exact"].label[0] == 0
        assert names[2]["labels"].tolist() == [[0, 0, -1, 1]]
        lower, upper = names[3]["ends"]
        assert 2.4 < float(names[3]["counted"].lower[0]) <= lower[0] < 3 - 0.35
        assert 3 + 0.35 < upper[0] <= float(names[3]["counted"].upper[0]) < 3.6
    if page == "guarantees":
        assert "those of 8 of 8 rows" in names[0]["fault"]
        assert (names[0]["failed"], len(names[0]["report"].statistics)) == ((), 20)
    if page == "models":
        assert "shapes (2, 8), (2, 3): say which are the scores" in names[0]["message"]
        assert (names[2]["result"].label == names[2]["digits"].target[1000:1010]).mean() > 0.7


def test_the_site_builds_without_a_warning_and_has_every_public_name(tmp_path):
    """The build executes the notebooks, and fails where one of them does."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "examples"), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = "".join(page.read_text() for page in (tmp_path / "reference").glob("*.html"))
    names = set(jaxsmooth.__all__) - {"ABSTAIN", "losses"}
    assert {name for name in names if f'id="jaxsmooth.{name}"' not in pages} == set()
    for name in ("jaxsmooth.losses.macer", "jaxsmooth.training.make_train_step", "bridges.pytorch.as_jax"):
        assert f'id="{name}"' in pages
    assert "MathJax" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "notebooks" / "jax.html").read_text().count("data:image/png") + len(
        list((tmp_path / "_images").glob("*.png"))
    ) >= 12


def test_notebooks_are_kept_with_their_output_and_no_trace_of_a_machine():
    notebooks = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
    assert [path.stem for path in notebooks] == ["data_set", "jax", "pytorch_and_art"]
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        assert any("image/png" in output.get("data", {}) for output in outputs)
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert "/work" not in path.read_text()


def test_links_in_pages_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "examples").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)


def test_the_python_in_the_readme_runs_and_prints_what_it_says(capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    page = ROOT / "README.md"
    names = run_python(page, together=False)
    assert len(names) == 3
    shown = page.read_text().split("```\n\n## Why this one")[0].rsplit("```\n", 1)[1]
    printed = capsys.readouterr().out
    # Frameworks add in another order on another processor: a vote on a border moves a radius in its third digit.
    assert re.sub(r"\d\.\d+", "#", printed.strip()) == re.sub(r"\d\.\d+", "#", shown.strip())
    numbers = [[float(word) for word in re.findall(r"\d\.\d+", text)] for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.06)
    assert names[1]["gradient"].shape == (5, 10)
    assert names[2]["label"].shape == (4,)


def test_the_snippet_for_weights_and_biases_runs_against_a_stand_in(monkeypatch):
    """The package would ask for an account: this takes what it is given."""
    logged = []
    run = SimpleNamespace(log=logged.append)
    stand_in = SimpleNamespace(init=lambda **_: contextlib.nullcontext(run), Table=lambda dataframe: len(dataframe))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    page = ROOT / "examples" / "guides" / "reports.md"
    names = run_python(page, together=True)[-1]
    (block,) = re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL)
    exec(block, names)
    assert logged[0] == {"certificates": 60, "abstained": pytest.approx((names["frame"].predict == -1).mean())}
    assert sorted(logged[1]) == ["certified accuracy/0.0", "certified accuracy/0.5", "certified accuracy/1.0"]


def test_the_core_suite_leaves_out_tests_that_there_are():
    for name in LIST.read_text().split():
        # An example in a docstring has its module twice.
        module, _, function = re.sub(r"^(.+)\.\1\.", r"\1.", name).rpartition(".")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert re.search(rf"^(def|class) {function}\b", source, re.MULTILINE), name


def test_no_module_hides_behind_a_public_name():
    """`import jaxsmooth.certify as m` would give the function."""
    modules = {path.stem for path in (ROOT / "jaxsmooth").glob("*.py")}
    assert modules & set(jaxsmooth.__all__) == {"losses"}
    import jaxsmooth.losses as losses

    assert losses is jaxsmooth.losses
    assert jaxsmooth.training.make_train_step is importlib.import_module("jaxsmooth.training").make_train_step
    assert "training" in dir(jaxsmooth)
    with pytest.raises(AttributeError, match="has no attribute 'trainings'"):
        jaxsmooth.trainings  # noqa: B018


def test_the_version_is_one():
    assert metadata.version("jaxsmooth") == jaxsmooth.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {jaxsmooth.__version__}" in citation
    assert f"version = {{{jaxsmooth.__version__}}}" in (ROOT / "README.md").read_text()
    assert f"## {jaxsmooth.__version__}" in (ROOT / "CHANGELOG.md").read_text()


STRICT = """
import jax, numpy as np, jaxsmooth
jax.config.update("jax_numpy_dtype_promotion", "strict")
x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
f, noise, key = lambda x: x[:, :3], jaxsmooth.Gaussian(0.3), jax.random.key(0)
results = [jaxsmooth.certify(f, noise, key, x, n=500), jaxsmooth.predict(f, noise, key, x, n=500)]
results += [jaxsmooth.certify_radii(f, noise, key, x, [0.1, 0.2], n=500), jaxsmooth.certify_within(f, noise, key, x)]
results += [next(jaxsmooth.certify_anytime(f, noise, key, x))]
results += [jaxsmooth.certify(f, noise, key, x, n=500, compiled=False)]
named = [entry for result in results for entry in jax.tree_util.tree_leaves_with_path(result)]
print([leaf.tolist() for _, leaf in named])
print(*(f"{jax.tree_util.keystr(path)}:{leaf.dtype}" for path, leaf in named))
if jax.config.jax_enable_x64:
    wide = jaxsmooth.certify(f, noise, key, x.astype(np.float64), n=500)
    assert (wide.votes.counts == results[0].votes.counts).all() and (wide.radius == results[0].radius).all()
"""


def test_results_do_not_depend_on_jax_settings():
    plain, x64 = (
        subprocess.run(
            [sys.executable, "-c", STRICT], env={**os.environ, "JAX_ENABLE_X64": flag}, capture_output=True, check=True
        ).stdout
        for flag in ("0", "1")
    )
    assert plain == x64
    dtypes = dict(entry.split(":") for entry in plain.decode().split("\n")[1].split())
    expected = dict.fromkeys((".label", ".votes.counts", ".votes.n", ".votes.selection"), "int32")
    expected |= dict.fromkeys((".radius", ".p_lower", ".p_value"), "float32")
    expected |= {f".state{name}": "int32" for name in (".votes.counts", ".votes.n", ".votes.selection")}
    expected |= {".state.certified": "int32", ".state.open_until": "int32", ".state.settings": "uint32"}
    assert dtypes == expected
