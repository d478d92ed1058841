"""The examples run by themselves, small; their figures at full size are in the README."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxsmooth import read_log

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *flags, cwd):
    command = [sys.executable, EXAMPLES / name, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_certify_mnist(tmp_path):
    done = run("certify_mnist.py", "--count", "20", "--n", "1000", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "certified accuracy" in done.stdout
    assert "certifying: 100%" in done.stderr
    rows = read_log(tmp_path / "certified_mnist.tsv")
    assert sorted(row.label for row in rows) == sorted([*range(10)] * 2)
    # 0.85 is asked of 200 images; 20 of that share fall below 12 with probability 1e-3, and the run is seeded.
    assert sum(row.correct for row in rows) >= 12
    assert (tmp_path / "certified_mnist.png").stat().st_size > 10_000


def test_certify_mnist_sequentially(tmp_path):
    done = run("certify_mnist.py", "--count", "10", "--n", "1000", "--radii", "--precision", "0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "times fewer" in line]
    assert [line.split()[0] for line in lines] == ["sequential,", "within"]


@pytest.mark.parametrize("flags", [("--count", "0"), ("--sigma", "-1")])
def test_certify_mnist_refuses_bad_flags(tmp_path, flags):
    done = run("certify_mnist.py", *flags, cwd=tmp_path)
    assert done.returncode != 0
    assert "must" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_certify_mnist_explains_its_flags(tmp_path):
    done = run("certify_mnist.py", "--help", cwd=tmp_path)
    flags = ("--sigma", "--n0", "--n", "--alpha", "--batch-size", "--count", "--seed", "--output")
    assert all(flag in done.stdout for flag in flags)


def test_torch_mnist(tmp_path):
    done = run("torch_mnist.py", "--count", "2", "--n", "500", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 images were changed within their radius" in done.stdout
    assert (tmp_path / "certified_torch_mnist.png").stat().st_size > 5_000


def test_keras_cifar(tmp_path):
    done = run("keras_cifar.py", "--count", "4", "--attacked", "2", "--steps", "4", "--n", "200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 attacked images were changed within their radius" in done.stdout
    assert (tmp_path / "certified_keras_cifar.png").stat().st_size > 5_000


def test_train_mnist(tmp_path):
    flags = ("--training", "500", "--count", "10", "--n", "200", "--objectives", "gaussian", "smoothmix")
    done = run("train_mnist.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["gaussian", "smoothmix"]
    assert (tmp_path / "trained_mnist.png").stat().st_size > 5_000


def test_jax_modules(tmp_path):
    done = run("jax_modules.py", "--steps", "20", "--count", "10", "--n", "100", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == 3
    assert all(" 0 traces" in line.split("|")[1] for line in lines)
