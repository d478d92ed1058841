"""Layers by name or index, and losses between what they return, for any framework."""

import inspect
from collections.abc import Callable
from typing import Any, cast

from jaxsmooth.arguments import as_integer


def layer_index(layer: Any, names: list[str]) -> int:
    """Return the index of a layer by its name or its index, a negative one counting from the end.

    Raises:
        ValueError: None, or no layer has this name. IndexError: there are fewer layers. TypeError: neither of both.

    Example:
        >>> layer_index("dense", ["conv", "dense"]), layer_index(-2, ["conv", "dense"])
        (1, 0)
    """
    if layer is None:
        raise ValueError(f"layer must name one of {names} or be an index into them, got None")
    if isinstance(layer, str):
        if layer not in names:
            raise ValueError(f"layer must be one of {names}, got {layer!r}")
        return names.index(layer)
    try:
        index = as_integer("layer", layer, -len(names), len(names) - 1)
    except TypeError:
        raise TypeError(f"layer must be a name or an index, got {layer!r}") from None
    except ValueError:
        raise IndexError(f"layer must be an index into the {len(names)} layers {names}, got {layer}") from None
    return index % len(names)


def only_output(outputs: list[Any], layer: Any) -> Any:
    """Return what a layer returned in its only call: the first array of several.

    Raises:
        ValueError: it was not called, or more than once, or it returned no array.
    """
    if len(outputs) != 1:
        times = "not called" if not outputs else f"called {len(outputs)} times"
        raise ValueError(f"layer must be one that the network calls once, but {layer!r} was {times}")
    return first_array(outputs[0], layer)


def pair(outputs: list[Any], layer: Any) -> list[Any]:
    """Return what a layer returned in two calls of the network.

    Raises:
        ValueError: it was not called once in each.
    """
    if len(outputs) != 2:
        only_output(outputs[: len(outputs) // 2] if outputs else [], layer)
    return outputs


def first_array(output: Any, layer: Any) -> Any:
    """Return an output that is an array or a tensor, or the first one of a tuple, as recurrent layers return them.

    Raises:
        ValueError: there is none.

    Example:
        >>> import numpy as np
        >>> first_array((np.zeros(2), (np.ones(1), np.ones(1))), "lstm")
        array([0., 0.])
    """
    found = output
    while isinstance(found, (tuple, list)) and found:
        found = cast(Any, found)[0]
    if not hasattr(found, "shape"):
        raise ValueError(f"layer must be one that returns an array, but {layer!r} returned a {type(output).__name__}")
    return found


def activation_loss(function: Any) -> Callable[[Any, Any], Any]:
    """Return a function of two activations from one of two, or of their difference.

    Example:
        >>> activation_loss(abs)(1, 3), activation_loss(lambda a, b: a * b)(2, 3)
        (2, 6)
    """
    parameters = inspect.signature(function).parameters
    if "p" in parameters:
        return lambda a, b: function(a - b, p=2)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters.values() if p.kind in positional and p.default is inspect.Parameter.empty]
    return function if len(needed) > 1 else lambda a, b: function(a - b)
