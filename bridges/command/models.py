"""Models as the command line names them: factories, files of Keras and PyTorch, folders of Hugging Face."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from bridges.command.factories import PACKAGES, is_factory, make
from bridges.losses import PROBABILITIES, kind_of_rows

HELP = """the model: module:factory or file.py:factory, whose factory takes no arguments and returns a torch.nn.Module,
a Keras model, a flax nnx module, a pair (linen module, variables), an Equinox module, or any function from a batch to
scores; or a Keras file (.keras, .h5); or a TorchScript file (.pt, .ts) or an exported program (.pt2) of PyTorch; or a
folder that Hugging Face's save_pretrained wrote. Nothing in such files is executed as Python"""

_UNTRACEABLE = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)


class Model(NamedTuple):
    """A model of any framework: `module` is its own object, a function for "jax"; `variables` are those of linen."""

    framework: str
    module: Any
    variables: Any = None


class Optimizer(NamedTuple):
    """How weights are trained: Adam, or stochastic gradient descent with momentum 0.9."""

    name: str = "adam"
    rate: float = 1e-3
    decay: float = 0.0


def load_model(name: str) -> Model:
    """Return the model that a factory makes, or that a file or folder holds.

    Raises:
        ValueError: there is none, or it is of a kind that is not known; the message says what it is.
    """
    path = Path(name)
    if is_factory(name):
        return _as_model(name, make(name, "MODEL"))
    if not path.exists():
        raise ValueError(f"MODEL must be module:factory, a file or a folder: there is no {name}")
    if path.is_dir() or path.suffix in (".pt2", ".pt", ".pth", ".ts", ".torchscript"):
        from bridges.pytorch import command

        if path.is_dir():
            return Model("torch", command.load_folder(path))
        if path.suffix == ".pt2":
            return Model("torch", command.load_program(path))
        return Model("torch", command.load_torchscript(path))
    if path.suffix in (".keras", ".h5", ".hdf5"):
        from bridges.tensorflow import command

        return Model("tensorflow", command.load_file(path))
    raise ValueError(
        f"MODEL {name} must end in .keras, .h5, .pt, .ts or .pt2, or be a folder of Hugging Face; for anything else "
        "write a factory"
    )


def _as_model(name: str, made: Any) -> Model:
    """Return what a factory made, with its framework."""
    module, variables = cast(Any, made) if isinstance(made, tuple) and len(cast(Any, made)) == 2 else (made, None)
    packages = {base.__module__.split(".")[0] for base in type(module).__mro__}
    for package in PACKAGES:
        if package in packages:
            if variables is not None and package != "flax":
                raise ValueError(
                    f"MODEL {name} must return the model alone, got it in a pair: a pair is a linen module with its "
                    "variables. Put what belongs before the model inside it"
                )
            return Model("tensorflow" if package == "keras" else package, module, variables)
    if not callable(made):
        raise ValueError(f"MODEL {name} must return a model, got {type(made).__name__}")
    return Model("jax", made)


def as_function(model: Model) -> tuple[Any, bool]:
    """Return the model as a classifier of jaxsmooth, and whether to run it within a compiled program."""
    if model.framework == "jax":
        return model.module, True
    if model.framework == "equinox":
        from bridges import equinox

        return equinox.as_jax(model.module), True
    return _tools(model).as_function(model), model.framework == "flax"


def _tools(model: Model) -> Any:
    """Return what a framework's bridge has for the command line. Each is imported only where it is needed."""
    if model.framework == "torch":
        from bridges.pytorch import command as tools
    elif model.framework == "tensorflow":
        from bridges.tensorflow import command as tools
    else:
        from bridges.flax import command as tools
    return tools


def trainable(
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
    if model.framework in ("jax", "equinox"):
        raise ValueError(
            f"MODEL must be of PyTorch, Keras or flax to be trained or to load weights, got one of {model.framework}"
        )
    refuse_integers(x)
    classes = scores_shape(*as_function(model), x[None])[1]
    settings = {"scale": sigma, "seed": seed, "clip_values": clip_values}
    return _tools(model).as_class(model, x.shape, classes, optimizer, settings)


def refuse_probabilities(model: Model, x: np.ndarray) -> None:
    """Refuse to train a network of PyTorch or flax that ends in a softmax: the loss has one of its own."""
    if model.framework not in ("torch", "flax"):
        return
    f, _ = as_function(model)
    if kind_of_rows(np.asarray(f(x))) == PROBABILITIES:
        raise ValueError("MODEL must return logits to be trained, got probabilities: leave out its last softmax")


def refuse_integers(x: np.ndarray) -> None:
    """Refuse inputs that no noise of the command can be added to."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"DATA must hold floats, got {x.dtype}: divide pixels by 255, in the factory or the file")


def scores_shape(f: Any, compiled: bool, x: np.ndarray) -> tuple[int, ...]:
    """Return the shape of the model's scores of some inputs.

    Raises:
        ValueError: it cannot take them, or returns something else. What frameworks raise names a layer in its middle,
            and a batch of ours.
    """
    try:
        rows = jnp.asarray(x)
        scores = jax.eval_shape(f, rows) if compiled else f(rows)
    except _UNTRACEABLE:
        raise
    except Exception as error:
        raise ValueError(
            f"MODEL fails on the inputs of DATA, whose shape is {x.shape[1:]}: {first_line(error)}"
        ) from error
    shape = tuple(getattr(scores, "shape", ()))
    if len(shape) < 2:
        got = f"an array of shape {shape} for one input" if hasattr(scores, "shape") else f"a {type(scores).__name__}"
        raise ValueError(f"MODEL must return scores [B, K] of a batch of B inputs, got {got}")
    if shape[-1] < 2:
        raise ValueError(f"MODEL must return scores of at least two classes, got shape {shape} for one input")
    return shape


def set_rate(classifier: Any, rate: float) -> None:
    """Set the learning rate of an optimizer, whichever framework's it is."""
    for group in getattr(classifier.optimizer, "param_groups", ()):
        group["lr"] = rate
    if hasattr(classifier.optimizer, "learning_rate"):
        classifier.optimizer.learning_rate = rate
    state: Any = getattr(classifier, "optimizer_state", None)
    if hasattr(state, "hyperparams"):
        state.hyperparams["learning_rate"] = jnp.float32(rate)


def with_weights(model: Model, x: np.ndarray, weights: Path) -> Model:
    """Return the model with the weights that `jaxsmooth train` saved."""
    classifier = trainable(model, x, sigma=1.0)
    try:
        classifier.load(weights.name, weights.parent)
    except FileNotFoundError as error:
        raise ValueError(f"--weights must be what jaxsmooth train saved, without an ending: {error}") from None
    except ValueError as error:
        raise ValueError(f"--weights must be those of MODEL: {first_line(error)}") from None
    return Model(model.framework, classifier.model, getattr(classifier, "variables", None))


def first_line(error: BaseException) -> str:
    """Return the first line of a message that says something, or the error's kind if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Keras begins with the place, and says what is wrong below it.
    is_place = lines[0].startswith("Exception encountered when calling") and len(lines) > 1
    return lines[1] if is_place else lines[0]
