"""ART's attacks, defences and generators work on our classes, and ART's signatures are kept."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bridges.art import as_art
from bridges.flax import FlaxRandomizedSmoothing
from bridges.pytorch import PyTorchRandomizedSmoothing
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from tests.bridges.frameworks import NNX, PyTorch, TensorFlow

REQUIRED = inspect.Parameter.empty
# ART 1.20.1: names, order and defaults of what can be given by position. First what its two classes share. Its batch
# sizes are 128 in predict and 32 in certify; ours is None, and chosen.
SHARED = {
    "predict": {"x": REQUIRED, "batch_size": None, "verbose": False},
    "certify": {"x": REQUIRED, "n": REQUIRED, "batch_size": None},
    "fit_generator": {"generator": REQUIRED, "nb_epochs": 20, "verbose": False},
    "loss_gradient": {"x": REQUIRED, "y": REQUIRED, "training_mode": False},
    "class_gradient": {"x": REQUIRED, "label": None, "training_mode": False},
    "compute_losses": {"x": REQUIRED, "y": REQUIRED, "reduction": "none"},
    "compute_loss_from_predictions": {"pred": REQUIRED, "y": REQUIRED},
    "save": {"filename": REQUIRED, "path": None},
    "reset": {},
    "clone_for_refitting": {},
    "get_params": {},
    "set_params": {},
}
ACTIVATIONS = {"x": REQUIRED, "layer": None, "batch_size": 128, "framework": False}
FIT = {
    "x": REQUIRED, "y": REQUIRED, "batch_size": 128, "nb_epochs": 10, "training_mode": True, "drop_last": False,
    "scheduler": None, "verbose": False,
}  # fmt: skip
CUSTOM = {"loss_fn": REQUIRED, "x": REQUIRED, "y": REQUIRED, "layer_name": REQUIRED, "training_mode": False}
LAST = {"sample_size": 32, "scale": 0.1, "alpha": 0.001}
SIGNATURES = {
    PyTorchRandomizedSmoothing: {
        **SHARED,
        "__init__": {
            "model": REQUIRED, "loss": REQUIRED, "input_shape": REQUIRED, "nb_classes": REQUIRED, "optimizer": None,
            "channels_first": True, "clip_values": None, "preprocessing_defences": None,
            "postprocessing_defences": None, "preprocessing": (0.0, 1.0), "device_type": "gpu", **LAST,
        },
        "fit": FIT,
        "compute_loss": {"x": REQUIRED, "y": REQUIRED, "reduction": "none"},
        "custom_loss_gradient": CUSTOM,
        "get_activations": ACTIVATIONS,
        "reduce_labels": {"y": REQUIRED},
        "set_batchnorm": {"train": REQUIRED},
        "set_dropout": {"train": REQUIRED},
        "set_multihead_attention": {"train": REQUIRED},
    },
    TensorFlowV2RandomizedSmoothing: {
        **SHARED,
        "__init__": {
            "model": REQUIRED, "nb_classes": REQUIRED, "input_shape": REQUIRED, "loss_object": None, "optimizer": None,
            "train_step": None, "channels_first": False, "clip_values": None, "preprocessing_defences": None,
            "postprocessing_defences": None, "preprocessing": (0.0, 1.0), **LAST,
        },
        "fit": {"x": REQUIRED, "y": REQUIRED, "batch_size": 128, "nb_epochs": 10, "verbose": False},
        "compute_loss": {"x": REQUIRED, "y": REQUIRED, "reduction": "none", "training_mode": False},
        "get_activations": ACTIVATIONS,  # ART has no default for the layer; ours raises and lists the names
    },
    FlaxRandomizedSmoothing: {  # as ART's PyTorch class
        **SHARED,
        "__init__": {
            "model": REQUIRED, "loss": REQUIRED, "input_shape": REQUIRED, "nb_classes": REQUIRED, "optimizer": None,
            "channels_first": False, "clip_values": None, "preprocessing_defences": None,
            "postprocessing_defences": None, "preprocessing": (0.0, 1.0), **LAST,
        },
        "fit": FIT,
        "compute_loss": {"x": REQUIRED, "y": REQUIRED, "reduction": "none"},
        "custom_loss_gradient": CUSTOM,
        "get_activations": ACTIVATIONS,
        "reduce_labels": {"y": REQUIRED},
    },
}  # fmt: skip
ATTRIBUTES = (
    *("model", "input_shape", "nb_classes", "clip_values", "channels_first", "layer_names", "optimizer"),
    *("sample_size", "scale", "alpha", "preprocessing", "preprocessing_defences", "postprocessing_defences"),
    *("preprocessing_operations", "all_framework_preprocessing"),
)
OWN_ATTRIBUTES = {
    PyTorchRandomizedSmoothing: ("loss", "device", "device_type", "use_amp", "opt_level", "loss_scale"),
    TensorFlowV2RandomizedSmoothing: ("loss_object", "train_step"),
    FlaxRandomizedSmoothing: ("loss", "variables", "from_logits", "optimizer_state"),
}
FRAMEWORKS = [PyTorch, TensorFlow, NNX]
CASES = [(cls, name) for cls, table in SIGNATURES.items() for name in table]


@pytest.mark.parametrize(("cls", "name"), CASES, ids=[f"{cls.__name__}.{name}" for cls, name in CASES])
def test_signatures_begin_as_art_s(cls, name):
    parameters = list(inspect.signature(getattr(cls, name)).parameters.values())[1:]
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    expected = SIGNATURES[cls][name]
    assert list(positional.items())[: len(expected)] == list(expected.items())
    assert all(default is not REQUIRED for default in list(positional.values())[len(expected) :])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_attributes_are_there(framework):
    classifier = framework.smoothed()
    assert [n for n in ATTRIBUTES + OWN_ATTRIBUTES[framework.cls] if not hasattr(classifier, n)] == []


@pytest.fixture(scope="module", params=FRAMEWORKS, ids=[framework.name for framework in FRAMEWORKS])
def report(request):
    """What became of ART's attacks, in a process of their own."""
    command = [sys.executable, "-m", "tests.bridges.art_attacks", request.param.package]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_attack_runs_on_the_network_and_on_the_smoothed_classifier(report):
    # ART refuses every TensorFlow classifier in MomentumIterativeMethod (its issue 2439), and has AutoAttack,
    # ShadowAttack and the losses of AutoProjectedGradientDescent for its own frameworks alone.
    assert len(report["attacks"]) == {"PyTorch": 54, "TensorFlowV2": 52, "Numpy": 44}[report["framework"]]
    assert {name: result for name, result in report["attacks"].items() if result != "ran"} == {}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=[framework.name for framework in FRAMEWORKS])
def test_trainers_defences_patches_and_metrics_run(framework):
    """Not here: patches of PyTorch images, GRAPHITE and OverTheAir (they need torchvision), BrendelBethge (numba)."""
    command = [sys.executable, "-m", "tests.bridges.art_tools", framework.package]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == {"pytorch": 43, "tensorflow": 34, "flax": 30}[framework.package]
    # A random defence before the network cannot be told from a random network. check=False says that it is meant.
    random = found.pop("GaussianAugmentation")
    assert random.startswith("ValueError: f must be a function of each row, but it is random")
    assert "check=False" in random
    assert {name: result for name, result in found.items() if result != "ran"} == {}


def test_the_joined_class_is_ours(report):
    joined = report["joined"]
    assert joined.pop("defences") == [[4, 3], [4, *report["shape"]]]
    assert joined.pop("generator") is None
    assert joined.pop("public names of ART alone") == []
    assert joined == dict.fromkeys(joined, True)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_art_nothing_imports_it(framework):
    code = f"import sys, bridges.{framework.package}, bridges.art; print('art' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
    classifier = framework.smoothed()
    assert type(classifier) is framework.cls
    with pytest.raises(RuntimeError, match=r"import art.estimators.certification.randomized_smoothing first"):
        as_art(classifier)
