"""Models of PyTorch for the command line: their files, folders of Hugging Face, and training."""

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from bridges.command.models import Model, Optimizer, first_line
from bridges.pytorch import PyTorchRandomizedSmoothing, WithPreprocessing, as_jax


def load_torchscript(path: Path) -> Any:
    """Return a TorchScript module. A pickle, which could execute anything, is not opened."""
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if not any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise ValueError(
            f"MODEL {path} is no TorchScript file: weights or a pickled module need the code of their network. Write a "
            "factory that builds it and loads them"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # such files exist, whatever is advised for new ones
        return torch.jit.load(path, map_location="cpu").eval()  # pyright: ignore[reportPrivateImportUsage]


def load_program(path: Path) -> Any:
    """Return the module of an exported program."""
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"MODEL {path} is no exported program of PyTorch: {first_line(error)}") from None
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


def load_folder(path: Path) -> Any:
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
    # The processor's own class may need torchvision; what it does is in its file.
    return WithPreprocessing(model, _processor(json.loads(steps.read_text(encoding="utf-8"))))


def _processor(settings: dict[str, Any]) -> Any:
    """Return an object like the image processor that a file describes: its class says what it does by its name."""
    kind = str(settings.get("image_processor_type", settings.get("feature_extractor_type", "ImageProcessor")))
    known: dict[str, Any] = {"image_mean": None, "image_std": None, **settings}
    if known["image_mean"] is None or known["image_std"] is None:
        known["do_normalize"] = False
    return type(kind.removesuffix("Fast"), (), known)()


def as_function(model: Model) -> Any:
    """Return the model as a classifier of jaxsmooth."""
    return as_jax(model.module)


def as_class(
    model: Model, shape: tuple[int, ...], classes: int, optimizer: Optimizer | None, settings: dict[str, Any]
) -> PyTorchRandomizedSmoothing:
    """Return the model as the class that trains it."""
    made = None if optimizer is None else _make_optimizer(model.module, optimizer)
    loss = torch.nn.CrossEntropyLoss()
    return PyTorchRandomizedSmoothing(model.module, loss, shape, classes, made, **settings)


def _make_optimizer(module: torch.nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    name, rate, decay = optimizer
    if name == "sgd":
        return torch.optim.SGD(module.parameters(), rate, 0.9, weight_decay=decay)
    return torch.optim.AdamW(module.parameters(), rate, weight_decay=decay)
