"""Run ART's attacks on a class of ours and print what became of each: `python -m tests.bridges.art_attacks pytorch`.

A process of its own, since importing ART changes what our classes are made from.
"""

import contextlib
import io
import json
import pickle
import sys
import warnings

import numpy as np

from bridges.art import as_art

SETTINGS = {"clip_values": (0, 1), "sample_size": 8, "alpha": 0.05, "seed": 0}


class PyTorch:
    shape = (1, 8, 8)
    suffix = "PyTorch"
    standardisation = "StandardisationMeanStdPyTorch"

    def __call__(self, **changes):
        import torch
        from torch import nn

        from bridges.pytorch import PyTorchRandomizedSmoothing

        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        settings = {"optimizer": optimizer, **SETTINGS, **changes}
        return PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), self.shape, 3, **settings)


class TensorFlow:
    shape = (8, 8, 1)
    suffix = "TensorFlowV2"
    standardisation = "StandardisationMeanStdTensorFlow"

    def __call__(self, **changes):
        import keras

        from bridges.tensorflow import TensorFlowV2RandomizedSmoothing

        keras.utils.set_random_seed(0)
        layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(3)]
        model = keras.Sequential([keras.Input(self.shape), *layers])
        # AutoPGD's own logits loss exists for one-hot labels alone.
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        settings = {"optimizer": keras.optimizers.SGD(0.1), "loss_object": loss, **SETTINGS, **changes}
        return TensorFlowV2RandomizedSmoothing(model, 3, self.shape, **settings)


class Flax:
    shape = (8, 8, 1)
    suffix = "Numpy"
    standardisation = "StandardisationMeanStd"

    def __call__(self, **changes):
        import jax
        import optax
        from flax import nnx

        from bridges.flax import FlaxRandomizedSmoothing

        rngs = nnx.Rngs(0)
        layers = [nnx.Conv(1, 4, (3, 3), rngs=rngs), jax.nn.relu, flatten, nnx.Linear(256, 3, rngs=rngs)]
        settings = {"optimizer": optax.sgd(0.1), **SETTINGS, **changes}
        return FlaxRandomizedSmoothing(nnx.Sequential(*layers), optax.softmax_cross_entropy, self.shape, 3, **settings)


def flatten(x):
    return x.reshape(len(x), -1)


FRAMEWORKS = {"pytorch": PyTorch(), "tensorflow": TensorFlow(), "flax": Flax()}


def attacks(evasion, suffix):
    """Name -> (attack of a classifier, settings that the classifier needs for it)."""
    quiet, short = {"verbose": False}, {"max_iter": 2, "verbose": False}
    small, once = {"eps": 0.1, **short}, {**short, "binary_search_steps": 1}
    auto = {"eps": 0.1, "eps_step": 0.05, "nb_random_init": 1, **short}
    shifts = {"max_translation": 10, "num_translations": 2, "max_rotation": 10, "num_rotations": 2, **quiet}
    zoo = {"max_iter": 1, "use_resize": False, "use_importance": False, "nb_parallel": 4, "variable_h": 0.1, **quiet}
    sinkhorn = {
        "regularization": 100,
        "max_iter": 1,
        "conjugate_sinkhorn_max_iter": 2,
        "projected_sinkhorn_max_iter": 2,
        **quiet,
    }
    table = {
        "FastGradientMethod": {"eps": 0.1},
        "BasicIterativeMethod": small,
        "MomentumIterativeMethod": small,
        "ProjectedGradientDescent": small,
        "ProjectedGradientDescentNumpy": small,
        f"ProjectedGradientDescent{suffix}": small,
        "AutoProjectedGradientDescent": auto,
        "AutoProjectedGradientDescent cross_entropy": {**auto, "loss_type": "cross_entropy"},
        "AutoProjectedGradientDescent difference_logits_ratio": {**auto, "loss_type": "difference_logits_ratio"},
        "AutoAttack": {"eps": 0.1, "eps_step": 0.05},
        "CarliniL0Method": once,
        "CarliniL2Method": once,
        # From 1e-5 it doubles its constant up to 20 by default, and shrinks the bound by a tenth each time.
        "CarliniLInfMethod": {**short, "largest_const": 3e-5, "decrease_factor": 0.5},
        "DeepFool": short,
        "ElasticNet": once,
        "NewtonFool": short,
        "SaliencyMapMethod": {"gamma": 0.05, **quiet},
        "HopSkipJump": {"max_iter": 1, "max_eval": 20, "init_eval": 5, "init_size": 5, **quiet},
        "BoundaryAttack": {"targeted": False, "init_size": 5, "num_trial": 5, **short},
        "SquareAttack": short,
        "SimBA": short,
        "ZooAttack": zoo,
        "PixelAttack": {"th": 1, "max_iter": 1, **quiet},
        "SpatialTransformation": shifts,
        "ShadowAttack": {"nb_steps": 2, **quiet},
        "UniversalPerturbation": {"attacker": "fgsm", "max_iter": 1, **quiet},
        "Wasserstein": sinkhorn,
    }
    outputs = {"AutoAttack": "log_frequencies", "SimBA": "frequencies"}
    if suffix == "Numpy":
        outputs["AutoProjectedGradientDescent"] = "log_frequencies"
        losses = [f"AutoProjectedGradientDescent {loss}" for loss in ("cross_entropy", "difference_logits_ratio")]
        for name in (*losses, "AutoAttack", "ShadowAttack"):
            del table[name]  # ART has these for PyTorch, TensorFlow and MXNet alone
    if suffix == "TensorFlowV2":
        del table["MomentumIterativeMethod"]  # ART refuses every TensorFlow classifier there (its issue 2439)
        logits = ("AutoProjectedGradientDescent", "AutoProjectedGradientDescent difference_logits_ratio")
        outputs |= dict.fromkeys(logits, "log_frequencies")
    for name, settings in table.items():
        attack = getattr(evasion, name.split()[0])
        yield name, attack, settings, {"output": outputs.get(name, "one_hot")}


def build(attack, classifier, settings):
    """Return the attack; the parts of AutoAttack's default list get fewer iterations than their up to 5,000."""
    built = attack(classifier, **settings)
    for part in getattr(built, "attacks", ()):
        part.set_params(max_iter=min(part.max_iter, 10))
    return built


def outcome(run):
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(name):
    warnings.simplefilter("ignore")
    smoothed = FRAMEWORKS[name]
    shape, suffix = smoothed.shape, smoothed.suffix
    early = smoothed()
    ours = type(early)
    from art.attacks import evasion
    from art.data_generators import NumpyDataGenerator
    from art.defences.postprocessor import ReverseSigmoid
    from art.defences.preprocessor import FeatureSqueezing
    from art.estimators.certification import randomized_smoothing
    from art.estimators.estimator import BaseEstimator
    from art.preprocessing import standardisation_mean_std

    standardisation = getattr(standardisation_mean_std, smoothed.standardisation)
    art_class = getattr(randomized_smoothing, ours.__name__, BaseEstimator)
    x = np.random.default_rng(0).uniform(size=(4, *shape)).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    results = {}
    for attack_name, attack, settings, needed in attacks(evasion, suffix):
        images = x[:1] if attack_name == "ShadowAttack" else x
        labels = {"y": y} if attack_name.endswith("Numpy") else {}
        for sampling in (False, True):
            np.random.seed(0)  # noqa: NPY002, ART's attacks draw from it
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                classifier = smoothed(sampling=sampling, **needed)
                shaped = outcome(lambda: build(attack, classifier, settings).generate(images, **labels).shape)  # noqa: B023
            results[f"{attack_name} sampling={sampling}"] = "ran" if shaped == images.shape else shaped

    classifier = smoothed()
    made_from = type(classifier)
    own = {name for name in dir(ours) if not name.startswith("_")}
    joined = {
        "is one of ART's": isinstance(classifier, art_class),
        "is one of ours": isinstance(classifier, ours),
        "public names are ours": all(getattr(made_from, name) is getattr(ours, name) for name in own),
        "public names of ART alone": sorted(n for n in dir(made_from) if not n.startswith("_") and n not in own),
        "pickle names our class": b"art." not in pickle.dumps(classifier),
        "an earlier instance is upgraded": isinstance(as_art(early), art_class) and not isinstance(early, art_class),
        "results are the same": bool((as_art(early).predict(x) == early.predict(x)).all()),
    }
    defended = smoothed(
        preprocessing_defences=[
            FeatureSqueezing(bit_depth=6, clip_values=(0, 1)),
            standardisation(0.5, 2.0),
        ],
        postprocessing_defences=ReverseSigmoid(),
    )
    joined["defences"] = outcome(lambda: [defended.predict(x).shape, defended.loss_gradient(x, y).shape])
    joined["generator"] = outcome(lambda: smoothed().fit_generator(NumpyDataGenerator(x, y, batch_size=2), nb_epochs=1))
    print(json.dumps({"framework": suffix, "shape": shape, "attacks": results, "joined": joined}))


if __name__ == "__main__":
    main(sys.argv[1])
