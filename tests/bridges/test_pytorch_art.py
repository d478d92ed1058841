"""ART's attacks, defences and generators work on our class, and ART's signatures are kept."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from bridges.art import as_art
from bridges.pytorch import PyTorchRandomizedSmoothing

REQUIRED = inspect.Parameter.empty
# ART 1.20.1: names, order and defaults of what can be given by position.
SIGNATURES = {
    "__init__": {
        "model": REQUIRED, "loss": REQUIRED, "input_shape": REQUIRED, "nb_classes": REQUIRED, "optimizer": None,
        "channels_first": True, "clip_values": None, "preprocessing_defences": None, "postprocessing_defences": None,
        "preprocessing": (0.0, 1.0), "device_type": "gpu", "sample_size": 32, "scale": 0.1, "alpha": 0.001,
    },
    "predict": {"x": REQUIRED, "batch_size": 128, "verbose": False},
    "certify": {"x": REQUIRED, "n": REQUIRED, "batch_size": 32},
    "fit": {
        "x": REQUIRED, "y": REQUIRED, "batch_size": 128, "nb_epochs": 10, "training_mode": True, "drop_last": False,
        "scheduler": None, "verbose": False,
    },
    "fit_generator": {"generator": REQUIRED, "nb_epochs": 20, "verbose": False},
    "loss_gradient": {"x": REQUIRED, "y": REQUIRED, "training_mode": False},
    "class_gradient": {"x": REQUIRED, "label": None, "training_mode": False},
    "compute_loss": {"x": REQUIRED, "y": REQUIRED, "reduction": "none"},
    "compute_losses": {"x": REQUIRED, "y": REQUIRED, "reduction": "none"},
    "compute_loss_from_predictions": {"pred": REQUIRED, "y": REQUIRED},
    "custom_loss_gradient": {
        "loss_fn": REQUIRED, "x": REQUIRED, "y": REQUIRED, "layer_name": REQUIRED, "training_mode": False,
    },
    "get_activations": {"x": REQUIRED, "layer": None, "batch_size": 128, "framework": False},
    "save": {"filename": REQUIRED, "path": None},
    "reset": {},
    "clone_for_refitting": {},
    "get_params": {},
    "set_params": {},
    "reduce_labels": {"y": REQUIRED},
    "set_batchnorm": {"train": REQUIRED},
    "set_dropout": {"train": REQUIRED},
    "set_multihead_attention": {"train": REQUIRED},
}  # fmt: skip
PROPERTIES = (
    *("model", "input_shape", "nb_classes", "clip_values", "channels_first", "layer_names", "optimizer", "loss"),
    *("device", "device_type", "use_amp", "opt_level", "loss_scale", "sample_size", "scale", "alpha", "preprocessing"),
    *("preprocessing_defences", "postprocessing_defences", "preprocessing_operations", "all_framework_preprocessing"),
)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_begin_as_art_s(name):
    parameters = list(inspect.signature(getattr(PyTorchRandomizedSmoothing, name)).parameters.values())[1:]
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    expected = SIGNATURES[name]
    assert dict(list(positional.items())[: len(expected)]) == expected
    assert all(default is not REQUIRED for default in list(positional.values())[len(expected) :])


def test_attributes_are_there():
    classifier = PyTorchRandomizedSmoothing(nn.Flatten(), nn.CrossEntropyLoss(), (1, 2, 2), 4)
    assert all(hasattr(classifier, name) for name in PROPERTIES)


@pytest.fixture(scope="module")
def report():
    """What became of ART's attacks, in a process of their own."""
    command = [sys.executable, "-m", "tests.bridges.art_attacks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_attack_runs_on_the_network_and_on_the_smoothed_classifier(report):
    assert len(report["attacks"]) == 54
    shapes = ([4, 1, 8, 8], [1, 1, 8, 8])
    assert {name: result for name, result in report["attacks"].items() if result not in shapes} == {}


def test_the_joined_class_is_ours(report):
    joined = report["joined"]
    assert joined.pop("defences") == [[4, 3], [4, 1, 8, 8]]
    assert joined.pop("generator") is None
    assert joined.pop("public names of ART alone") == []
    assert joined == dict.fromkeys(joined, True)


def test_without_art_nothing_imports_it():
    code = "import sys, bridges.pytorch, bridges.art; print('art' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
    classifier = PyTorchRandomizedSmoothing(nn.Flatten(), nn.CrossEntropyLoss(), (1, 2, 2), 4)
    assert type(classifier) is PyTorchRandomizedSmoothing
    with pytest.raises(RuntimeError, match=r"import art.estimators.certification.randomized_smoothing first"):
        as_art(classifier)
