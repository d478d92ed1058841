"""Models as the command line names them: factories, files of Keras and PyTorch, folders of Hugging Face."""

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from bridges.command.factories import is_factory, make

HELP = """the model: module:factory or file.py:factory, whose factory takes no arguments and returns a torch.nn.Module,
a Keras model, a flax nnx module, a pair (linen module, variables), an Equinox module, or any function from a batch to
scores; or a Keras file (.keras, .h5); or a TorchScript file (.pt, .ts) or an exported program (.pt2) of PyTorch; or a
folder that Hugging Face's save_pretrained wrote. Nothing in such files is executed as Python"""

_PACKAGES = ("torch", "flax", "keras", "tensorflow", "equinox")


class Model(NamedTuple):
    """A model of any framework: `module` is its own object, a function for "jax"; `variables` are those of linen."""

    framework: str
    module: Any
    variables: Any = None


def load_model(name: str) -> Model:
    """Return the model that a factory makes, or that a file or folder holds.

    Raises:
        ValueError: there is none, or it is of a kind that is not known; the message says what it is.
    """
    path = Path(name)
    if is_factory(name):
        return _as_model(name, make(name, "MODEL"))
    if path.is_dir():
        return Model("torch", _from_folder(path))
    if not path.exists():
        raise ValueError(f"MODEL must be module:factory, a file or a folder: there is no {name}")
    if path.suffix in (".keras", ".h5", ".hdf5"):
        return Model("tensorflow", _from_keras(path))
    if path.suffix == ".pt2":
        return Model("torch", _from_program(path))
    if path.suffix in (".pt", ".pth", ".ts", ".torchscript"):
        return Model("torch", _from_torchscript(path))
    raise ValueError(
        f"MODEL {name} must end in .keras, .h5, .pt, .ts or .pt2, or be a folder of Hugging Face; for anything else "
        "write a factory"
    )


def _as_model(name: str, made: Any) -> Model:
    """Return what a factory made, with its framework."""
    module, variables = cast(Any, made) if isinstance(made, tuple) and len(cast(Any, made)) == 2 else (made, None)
    packages = {base.__module__.split(".")[0] for base in type(module).__mro__}
    for package in _PACKAGES:
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


def _from_keras(path: Path) -> Any:
    """Return a saved Keras model. Keras refuses code in it (safe mode)."""
    import keras

    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"MODEL {path} cannot be loaded by Keras: {_first_line(error)}") from None


def _from_torchscript(path: Path) -> Any:
    """Return a TorchScript module. A pickle, which could execute anything, is not opened."""
    import torch

    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if not any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise ValueError(
            f"MODEL {path} is no TorchScript file: weights or a pickled module need the code of their network. Write a "
            "factory that builds it and loads them"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # such files exist, whatever is advised for new ones
        return torch.jit.load(path, map_location="cpu").eval()  # pyright: ignore[reportPrivateImportUsage]


def _from_program(path: Path) -> Any:
    """Return the module of an exported program."""
    import torch

    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"MODEL {path} is no exported program of PyTorch: {_first_line(error)}") from None
    fixed = [
        node.name
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in program.graph_signature.user_inputs and isinstance(node.meta["val"].shape[0], int)
    ]
    if fixed:
        raise ValueError(
            f"MODEL {path} was exported for one batch size: export it with dynamic_shapes, torch.export.Dim for the "
            "first axis"
        )
    return program.module()


def _from_folder(path: Path) -> Any:
    """Return a model of Hugging Face, with what its image processor does inside."""
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(f"MODEL {path} must be a folder of Hugging Face: it has no config.json")
    try:
        import transformers
    except ImportError:
        raise ValueError(f"MODEL {path} needs the package transformers") from None
    described = json.loads(config.read_text(encoding="utf-8"))
    kind = next(iter(described.get("architectures") or []), None)
    if kind is None or not hasattr(transformers, kind):
        raise ValueError(f"MODEL {path} must be of an architecture of transformers, got {kind}")
    model = getattr(transformers, kind).from_pretrained(path, local_files_only=True).eval()
    steps = path / "preprocessor_config.json"
    if not steps.is_file():
        return model
    from bridges.pytorch import WithPreprocessing

    # The processor's own class may need torchvision; what it does is in its file.
    return WithPreprocessing(model, _processor(json.loads(steps.read_text(encoding="utf-8"))))


def _processor(settings: dict[str, Any]) -> Any:
    """Return an object like the image processor that a file describes: its class says what it does by its name."""
    kind = str(settings.get("image_processor_type", settings.get("feature_extractor_type", "ImageProcessor")))
    known: dict[str, Any] = {"image_mean": None, "image_std": None, **settings}
    if known["image_mean"] is None or known["image_std"] is None:
        known["do_normalize"] = False
    return type(kind.removesuffix("Fast"), (), known)()


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
    if model.framework == "equinox":
        from bridges import equinox

        return equinox.as_jax(model.module), True
    return model.module, True


def trainable(
    model: Model,
    x: np.ndarray,
    sigma: float,
    optimizer: "Optimizer | None" = None,
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
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"DATA must be floats for a model to be trained on them, got {x.dtype}: divide pixels by 255")
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
    import optax

    from bridges.flax import FlaxRandomizedSmoothing

    # The rate is part of the optimizer's state, so that a schedule may set it between epochs.
    adam = optax.inject_hyperparams(optax.adamw)(learning_rate=rate, weight_decay=decay)
    sgd = optax.inject_hyperparams(_sgd)(learning_rate=rate, decay=decay)
    settings["variables"] = model.variables
    loss = optax.softmax_cross_entropy_with_integer_labels
    made = None if optimizer is None else sgd if name == "sgd" else adam
    return FlaxRandomizedSmoothing(model.module, loss, x.shape, classes, made, **settings)


class Optimizer(NamedTuple):
    """How weights are trained: Adam, or stochastic gradient descent with momentum 0.9."""

    name: str = "adam"
    rate: float = 1e-3
    decay: float = 0.0


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


def with_weights(model: Model, x: np.ndarray, weights: Path) -> Model:
    """Return the model with the weights that `jaxsmooth train` saved."""
    classifier = trainable(model, x, sigma=1.0)
    try:
        classifier.load(weights.name, weights.parent)
    except FileNotFoundError as error:
        raise ValueError(f"--weights must be what jaxsmooth train saved, without an ending: {error}") from None
    return Model(model.framework, classifier.model, getattr(classifier, "variables", None))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
