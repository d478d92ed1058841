"""What the command-line scripts name as `module:factory`: models of three frameworks or of plain JAX, and data sets."""

import importlib
import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

MODEL_HELP = """module:factory of the model. The factory takes no arguments and returns a torch.nn.Module, a Keras
model, a flax nnx module, a pair (linen module, variables), or any JAX function from a batch to scores. Modules are
looked for in the folder that the script is called from, and beside it: models:mnist_torch is there"""
DATA_HELP = """.npz file with arrays x and y, or module:factory of a data set: two arrays, or pairs (x, label) as a
list, a torch Dataset, a tf.data.Dataset or a generator. models:mnist_test is beside the script"""


class Model(NamedTuple):
    """A model of any framework: `module` is its own object, a function for "jax"; `variables` are those of linen."""

    framework: str
    module: Any
    variables: Any = None


def share_files(log: Path) -> list[Path]:
    """Return the files of votes that several processes wrote for a log."""
    name = re.compile(re.escape(log.stem) + r"\.\d+-of-\d+" + re.escape(log.suffix) + r"\.votes")
    return sorted(found for found in log.parent.glob("*.votes") if name.fullmatch(found.name))


def seed_of(given: int | None) -> int:
    """Return the seed of the votes, which is drawn if none is given, and show it.

    A certificate does not hold against someone who knew the noise when choosing the input or the model.
    """
    seed = secrets.randbits(64) if given is None else given
    print(f"seed of the votes: {seed}")
    return seed


def load_model(name: str) -> Model:
    """Return the model that a factory makes."""
    made = load_factory(name)()
    module, variables = cast(Any, made) if isinstance(made, tuple) and len(cast(Any, made)) == 2 else (made, None)
    packages = {base.__module__.split(".")[0] for base in type(module).__mro__}
    for package in ("torch", "flax", "keras", "tensorflow"):
        if package in packages:
            return Model("tensorflow" if package == "keras" else package, module, variables)
    if not callable(made):
        raise SystemExit(f"{name} must return a model, got {type(made).__name__}")
    return Model("jax", made)


def load_factory(name: str) -> Any:
    """Return the factory of `module:factory`."""
    module, separator, factory = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), factory) if separator else None
    except (ImportError, AttributeError) as error:
        raise SystemExit(f"{name} cannot be loaded: {error}") from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise SystemExit(f"{name} must be module:factory with a factory that can be called")
    return found


def load_data(name: str) -> Any:
    """Return the data set of an .npz file or a factory."""
    if not name.endswith(".npz"):
        return load_factory(name)()
    try:
        with np.load(name, allow_pickle=False) as file:
            return file["x"], file["y"]
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"{name} must be an .npz file with arrays x and y: {error}") from None


def first_input(data: Any) -> np.ndarray:
    """Return one input of a data set; of a generator a new one must be made afterwards."""
    if isinstance(data, tuple):
        return np.asarray(cast(Any, data)[0][0])
    return np.asarray(next(iter(cast(Iterable[Any], data)))[0])


def as_function(model: Model) -> tuple[Any, bool]:
    """Return the model as a classifier of jaxsmooth, and whether to run it within a compiled program."""
    if model.framework == "torch":
        from bridges import pytorch

        return pytorch.as_jax(model.module), False
    if model.framework == "tensorflow":
        from bridges import tensorflow

        return tensorflow.as_jax(model.module), False
    if model.framework == "flax":
        from bridges import flax

        return flax.as_jax(model.module, model.variables), True
    return model.module, True


class Optimizer(NamedTuple):
    """How weights are trained: Adam, or stochastic gradient descent with momentum 0.9."""

    name: str = "adam"
    rate: float = 1e-3
    decay: float = 0.0


def smoothed(
    model: Model,
    x: np.ndarray,
    sigma: float,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    clip_values: tuple[float, float] | None = None,
) -> Any:
    """Return the model as a class that trains under noise, saves and loads.

    Args:
        model: of a framework.
        x: one input.
        sigma: noise, in the units of x.
        optimizer: its name, rate and weight decay; None to load weights only.
        seed: of the noise.
        clip_values: the range of the inputs, which attacks stay in.
    """
    name, rate, decay = optimizer or Optimizer()
    classes = np.shape(as_function(model)[0](jnp.asarray(x[None])))[1]
    settings: Any = {"scale": sigma, "seed": seed, "clip_values": clip_values}
    if model.framework == "torch":
        import torch

        from bridges.pytorch import PyTorchRandomizedSmoothing

        weights = list(model.module.parameters())
        made: Any = torch.optim.AdamW(weights, rate, weight_decay=decay)
        if name == "sgd":
            made = torch.optim.SGD(weights, rate, 0.9, weight_decay=decay)
        loss = torch.nn.CrossEntropyLoss()
        made = None if optimizer is None else made
        return PyTorchRandomizedSmoothing(model.module, loss, x.shape, classes, made, **settings)
    if model.framework == "tensorflow":
        import keras

        from bridges.tensorflow import TensorFlowV2RandomizedSmoothing

        made = keras.optimizers.AdamW(rate, decay) if decay else keras.optimizers.Adam(rate)
        if name == "sgd":
            made = keras.optimizers.SGD(rate, 0.9, weight_decay=decay or None)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made = None if optimizer is None else made
        return TensorFlowV2RandomizedSmoothing(model.module, classes, x.shape, loss, made, **settings)
    if model.framework == "flax":
        import optax

        from bridges.flax import FlaxRandomizedSmoothing

        # The rate is part of the optimizer's state, so that a schedule may set it between epochs.
        adam = optax.inject_hyperparams(optax.adamw)(learning_rate=rate, weight_decay=decay)
        sgd = optax.inject_hyperparams(_sgd)(learning_rate=rate, decay=decay)
        settings["variables"] = model.variables
        loss = optax.softmax_cross_entropy_with_integer_labels
        made = None if optimizer is None else sgd if name == "sgd" else adam
        return FlaxRandomizedSmoothing(model.module, loss, x.shape, classes, made, **settings)
    raise SystemExit("a plain JAX function has no weights to train or load: give a model of a framework")


def _sgd(learning_rate: Any, decay: Any) -> Any:
    import optax

    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(learning_rate, 0.9))


def set_rate(classifier: Any, rate: float) -> None:
    """Set the learning rate of an optimizer, whichever framework's it is."""
    for group in getattr(classifier.optimizer, "param_groups", ()):
        group["lr"] = rate
    if hasattr(classifier.optimizer, "learning_rate"):
        classifier.optimizer.learning_rate = rate
    state: Any = getattr(classifier, "optimizer_state", None)
    if hasattr(state, "hyperparams"):
        state.hyperparams["learning_rate"] = jnp.float32(rate)


def with_weights(model: Model, x: np.ndarray, weights: Path | None) -> Model:
    """Return the model with the weights that `train.py` saved."""
    if weights is None:
        return model
    classifier = smoothed(model, x, sigma=1.0)
    classifier.load(weights.name, weights.parent)
    return Model(model.framework, classifier.model, getattr(classifier, "variables", None))
