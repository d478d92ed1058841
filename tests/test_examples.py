"""The examples run by themselves, small; their figures at full size are in the README.

Those that load ART, which changes what our classes are made from, and the first one in the README have a process of
their own. The others run in that of the tests: importing the frameworks would take longer than what they do.
"""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxsmooth import read_log

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs a script in an empty folder as `python script` does, but in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run_script(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *flags])
        status = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        shown = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=shown.out, stderr=shown.err)

    return run_script


def run_apart(name, *flags, cwd):
    command = [sys.executable, EXAMPLES / name, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_certify_mnist(tmp_path):
    flags = ("--count", "20", "--n", "1000", "--radii", "--precision", "0.05", "--seed", "0")
    done = run_apart("certify_mnist.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "times fewer" in line]
    assert [line.split()[0] for line in lines] == ["sequential,", "within"]
    assert "certified accuracy" in done.stdout
    assert "certifying: 100%" in done.stderr
    rows = read_log(tmp_path / "certified_mnist.tsv")
    assert sorted(row.label for row in rows) == sorted([*range(10)] * 2)
    # 0.85 is asked of 200 images; 20 of that share fall below 12 with probability 1e-3, and the run is seeded.
    assert sum(row.correct for row in rows) >= 12
    assert (tmp_path / "certified_mnist.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "flags", [("--count", "0"), ("--sigma", "-1"), ("--alpha", "1"), ("--n", "0"), ("--batch-size", "0")]
)
def test_certify_mnist_refuses_bad_flags(tmp_path, run, flags):
    done = run("certify_mnist.py", *flags)
    assert done.returncode == 2
    assert f"error: {flags[0]} must" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_certify_mnist_explains_its_flags(run):
    done = run("certify_mnist.py", "--help")
    flags = ("--sigma", "--n0", "--n", "--alpha", "--batch-size", "--count", "--training-seed", "--seed", "--output")
    assert all(flag in done.stdout for flag in flags)


def test_torch_mnist(tmp_path):
    done = run_apart("torch_mnist.py", "--count", "2", "--n", "500", "--seed", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 images were changed within their radius" in done.stdout
    assert (tmp_path / "certified_torch_mnist.png").stat().st_size > 5_000


def test_keras_cifar(tmp_path):
    flags = ("--count", "4", "--attacked", "2", "--steps", "4", "--n", "200", "--seed", "0")
    done = run_apart("keras_cifar.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 attacked images were changed within their radius" in done.stdout
    assert (tmp_path / "certified_keras_cifar.png").stat().st_size > 5_000


def test_train_mnist(tmp_path, run):
    flags = ("--training", "500", "--count", "10", "--n", "200", "--objectives", "gaussian", "smoothmix")
    done = run("train_mnist.py", *flags)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:4]] == ["gaussian", "smoothmix"]
    assert (tmp_path / "trained_mnist.png").stat().st_size > 5_000


def test_train_mnist_in_another_framework(run):
    flags = ("--training", "300", "--count", "10", "--n", "200", "--objectives", "consistency", "--framework", "torch")
    done = run("train_mnist.py", *flags)
    assert done.returncode == 0, done.stderr
    name, at_zero, *_ = done.stdout.splitlines()[2].split()
    assert name == "consistency"
    assert float(at_zero) >= 0.5


def test_denoise_mnist(tmp_path, run):
    done = run("denoise_mnist.py", "--count", "6", "--seconds", "4", "--n", "300", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert "behind the denoiser" in done.stdout
    assert (tmp_path / "denoised_mnist.png").stat().st_size > 5_000


def test_levels_mnist(tmp_path, run):
    done = run("levels_mnist.py", "--training", "500", "--count", "10", "--n", "300", "--seed", "0")
    assert done.returncode == 0, done.stderr
    names = [line.rsplit(maxsplit=9)[0].strip() for line in done.stdout.splitlines()[5:10]]
    assert names == ["sigma 0.25", "sigma 0.5", "sigma 1.0", "a level for each image", "if the level came free"]
    assert (tmp_path / "levels_mnist.png").stat().st_size > 5_000


def test_changed_mnist(tmp_path, run):
    done = run("changed_mnist.py", "--count", "3", "--n", "500", "--m", "200", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert "bfloat16, from those of float32" in done.stdout
    assert "of 600 samples changed their class" in done.stdout
    assert (tmp_path / "changed_mnist.tsv.votes").stat().st_size > 100


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_segment_mnist(tmp_path, run, framework):
    flags = ("--framework", framework, "--seconds", "3", "--count", "2", "--n", "60", "--seed", "0")
    done = run("segment_mnist.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "radius 0.168 for all certified pixels of a canvas together" in done.stdout
    shares = {
        line.split("  ")[0]: [float(word) for word in line.split()[-3:]] for line in done.stdout.splitlines()[5:7]
    }
    assert all(abs(sum(each) - 1) < 0.003 for each in shares.values())
    assert shares["all"][0] > 0.5  # the background alone is more than that
    assert (tmp_path / "segmented_mnist.png").stat().st_size > 5_000


def test_ablate_mnist(run):
    done = run("ablate_mnist.py", "--count", "20", "--epochs", "1", "--n", "200", "--l1", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert "norm 0" in done.stdout
    assert "splitting noise: all 765 places of the cuts" in done.stdout
    assert "every place: mode splitting, levels 255, alpha 0" in done.stdout


def test_ablate_text(run):
    done = run("ablate_text.py", "--count", "40", "--epochs", "8", "--n", "500", "--seed", "0")
    assert done.returncode == 0, done.stderr
    found = re.search(r"accuracy on 40 others, all words shown: (0\.\d+)", done.stdout)
    assert found
    assert float(found.group(1)) > 0.7
    assert "Ablation(positions=64,kept=8,mask=0), norm 0" in done.stdout


def test_regress_diabetes(tmp_path, run):
    done = run("regress_diabetes.py", "--n", "300", "--seed", "0")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in done.stdout.splitlines()[3:5]}
    assert sorted(rows) == ["JAX", "PyTorch"]
    for error, width, counted in rows.values():
        assert error < 60
        assert 0 < width <= counted < width + 4.1  # the thresholds are 2 apart
    assert (tmp_path / "diabetes.png").stat().st_size > 5_000


def test_jax_modules(run):
    done = run("jax_modules.py", "--steps", "20", "--count", "10", "--n", "100")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[2:]
    assert len(lines) == 3
    assert all(" 0 traces" in line.split("|")[1] for line in lines)
