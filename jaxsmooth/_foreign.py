"""Objects of other frameworks where a JAX function belongs: what they are, and which call takes them.

They are recognised by the names of the modules that their types come from. Nothing is imported.
"""

import itertools
from typing import Any

_ON_THE_HOST = "with compiled=False"

# Beginning of the module's name, name of a type in it or None for any: what it is, and what takes it.
_KINDS = (
    ("torch.nn", "Module", "a PyTorch module", "bridges.pytorch.as_jax(model)"),
    ("keras", "Layer", "a Keras model", "bridges.tensorflow.as_jax(model)"),
    ("tensorflow", "Module", "a TensorFlow module", "bridges.tensorflow.as_jax(model)"),
    ("tensorflow", "GenericFunction", "a TensorFlow function", "bridges.tensorflow.as_jax(function)"),
    ("tensorflow", "Function", "a TensorFlow function", "bridges.tensorflow.as_jax(function)"),
    ("flax.linen", "Module", "a flax.linen module", "bridges.flax.as_jax(module, variables)"),
    ("haiku", "Transformed", "a pair of functions of haiku", "jax.tree_util.Partial(transformed.apply, params, None)"),
    (
        "sklearn",
        "BaseEstimator",
        "a scikit-learn estimator",
        f"a function such as lambda x: model.predict_proba(np.asarray(x)), {_ON_THE_HOST},",
    ),
    (
        "onnxruntime",
        "InferenceSession",
        "an ONNX Runtime session",
        f"a function such as lambda x: session.run(None, {{name: np.asarray(x)}})[0], {_ON_THE_HOST},",
    ),
)


def advice(f: Any) -> str | None:
    """Return what a classifier is and which call takes it, if it is of a framework that JAX cannot trace.

    Example:
        >>> advice(lambda x: x) is None
        True
    """
    if (found := kind_of(f)) is not None:
        what, taker = found
        if getattr(f, "scope", None) is not None and what == "a flax.linen module":
            taker = "bridges.flax.as_jax(*module.unbind())"
        if what == "a scikit-learn estimator" and not hasattr(f, "predict_proba"):
            taker = taker.replace("predict_proba", "decision_function")
        return f"got {what}, {type(f).__name__}: {taker} takes it"
    if is_nnx(f) and (layer := _training_layer(f)) is not None:
        return (
            f"got an nnx module, {type(f).__name__}, in training mode (its {layer}): bridges.flax.as_jax(module) "
            "takes it in evaluation mode"
        )
    return None


def kind_of(value: Any) -> tuple[str, str] | None:
    """Return what an object of another framework is, and which call takes it; None for any other.

    Example:
        >>> kind_of(lambda x: x) is None
        True
    """
    for base in type(value).__mro__:
        for module, name, what, taker in _KINDS:
            if base.__name__ == name and f"{base.__module__}.".startswith(f"{module}."):
                return what, taker
    return None


def linen_of(f: Any) -> str | None:
    """Return the type of the flax.linen module whose `apply` a partial function calls; None if it calls no such."""
    module = getattr(getattr(f, "func", None), "__self__", None)
    found = kind_of(module)
    return type(module).__name__ if found is not None and found[0] == "a flax.linen module" else None


def is_nnx(value: Any) -> bool:
    """Return whether a value is a flax.nnx module."""
    return any(base.__module__.startswith("flax.nnx") and base.__name__ == "Module" for base in type(value).__mro__)


def _training_layer(value: Any) -> str | None:
    """Return the type of the first layer of an nnx module that is in training mode; None if none is."""
    if is_nnx(value):
        own = vars(value)
        if own.get("deterministic") is False or own.get("use_running_average") is False:
            return type(value).__name__
        parts = own.values()
    elif isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, (list, tuple)) or type(value).__module__.startswith("flax.nnx"):
        try:
            parts = list(itertools.islice(value, 10_000))
        except TypeError:
            return None
    else:
        return None
    return next((found for part in parts if (found := _training_layer(part)) is not None), None)
