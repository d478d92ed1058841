"""Layers by name or index, for any framework."""

from typing import Any


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
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise TypeError(f"layer must be a name or an index, got {layer!r}")
    if not -len(names) <= int(layer) < len(names):
        raise IndexError(f"layer must be an index into the {len(names)} layers {names}, got {layer}")
    return int(layer) % len(names)
