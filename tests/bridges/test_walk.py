"""How many files and functions of ours a reader of one `certify` walks through: it stays short."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from torch import nn

import bridges
import jaxsmooth
from bridges.pytorch import PyTorchRandomizedSmoothing

OURS = tuple(str(Path(package.__file__).parent) for package in (jaxsmooth, bridges))
X = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)


def walk(call):
    """Return the files and the functions of ours that a call goes through."""
    functions = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            functions.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {file for file, _ in functions}, functions


def of_core():
    f, noise, key = lambda x: x, jaxsmooth.Gaussian(0.5), jax.random.key(0)
    return lambda: jaxsmooth.certify(f, noise, key, X, n=1000)


def of_class():
    network = nn.Sequential(nn.Flatten(), nn.Linear(10, 5))
    classifier = PyTorchRandomizedSmoothing(network, nn.CrossEntropyLoss(), (10,), 5, scale=0.25, seed=0)
    return lambda: classifier.certify(X, n=1000)


@pytest.mark.parametrize(("make", "most_files", "most_functions"), [(of_core, 7, 32), (of_class, 12, 63)])
def test_the_walk_of_a_second_certify_is_short(make, most_files, most_functions):
    call = make()
    call()
    files, functions = walk(call)
    assert "certificates.py" in {Path(file).name for file in files}
    assert len(files) <= most_files, sorted(files)
    assert len(functions) <= most_functions, sorted(functions)
