"""What a run is of, in words: the settings in the header of its votes, and the claim in each line of its log."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from jaxsmooth._checks import split_callable
from jaxsmooth.descriptions import described, digest
from jaxsmooth.types import Classifier, Noise

_PACKAGES = ("jaxsmooth", "jax", "jaxlib", "numpy", "scipy")
NOT_IDENTIFIED = "not identified"
NO_TRUTH = "none"
"""What a run says of its truth where its labels are no classes of its classifier, such as levels."""
CLAIMED = (
    "noise",
    "norm",
    "mode",
    "k",
    "radii",
    "precision",
    "levels",
    "alpha",
    "n0",
    "n",
    "bound",
    "m",
    "selector",
    "truth",
    "dtype",
    "key",
    "inputs",
)


def origin(f: Classifier, noise: Noise, key: jax.Array) -> dict[str, Any]:
    """Return what the votes of a run come from, in a form that JSON can hold."""
    return {
        **noise_identity(noise),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "classifier": identity(f),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def claim(settings: Mapping[str, Any]) -> str:
    """Return what a certificate of a run claims, as `name=value` words for its line in the log.

    Example:
        >>> claim({"norm": 2, "radii": [0.25, 0.5], "precision": None, "key": [0, 1], "versions": {"jaxsmooth": "0.1"}})
        'norm=2 radii=0.25,0.5 key=0,1 jaxsmooth=0.1'
    """
    words = {name: settings[name] for name in CLAIMED if settings.get(name) is not None}
    versions = settings.get("versions", {})
    words |= {name: versions[name] for name in ("jaxsmooth", "jax") if name in versions}
    texts = {name: ",".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in words.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())


def noise_words(noise: Noise) -> str:
    """Return a noise with its own parameters, as one word.

    They are those of its method `parameters`, if it has one, else its fields, else its scale. An array is told by a
    digest of its content.

    Example:
        >>> from jaxsmooth import Gaussian, LatticeGaussian
        >>> noise_words(Gaussian(0.25)), noise_words(LatticeGaussian(0.5, 0.125))
        ('Gaussian(sigma=0.25)', 'LatticeGaussian(sigma=0.5,step=0.125)')
    """
    own: Callable[[], Mapping[str, Any]] | None = getattr(noise, "parameters", None)
    if own is not None:
        values = dict(own())
    elif hasattr(noise, "_fields"):
        values = {name: getattr(noise, name) for name in noise._fields}  # pyright: ignore
    elif dataclasses.is_dataclass(noise):
        values = {field.name: getattr(noise, field.name) for field in dataclasses.fields(noise)}
    else:
        values = {"scale": noise.scale}
    texts = ",".join(f"{name}={_value_words(value)}" for name, value in values.items())
    return "".join(f"{type(noise).__name__}({texts})".split())


def level_words(levels: Sequence[tuple[Any, Noise]]) -> str:
    """Return the noises of several levels, pairs (f, noise), as one word."""
    return f"levels({','.join(noise_words(noise) for _, noise in levels)})"


def noise_identity(noise: Noise) -> dict[str, Any]:
    """Return what tells a noise from another one: its words, and exactly, its arrays and what is static in it."""
    exactly = f"{digest(noise_arrays(noise))} {described(jax.tree.structure(noise))}"
    return {"noise": noise_words(noise), "norm": noise.norm, "noise_exactly": exactly}


def noise_arrays(noise: Noise) -> list[np.ndarray]:
    """Return the arrays in a noise. A float64 number is float32 here, as it is unless `jax_enable_x64` is set."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(noise)]
    return [array.astype(np.float32) if array.dtype == np.float64 else array for array in arrays]


def _value_words(value: Any) -> str:
    """Return a number as float32 would be written shortest, an array by a digest, anything else as it is."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return str(value)
    if array.dtype.kind not in "biuf":
        return str(value)
    return str(float(str(np.float32(array.item())))) if array.size == 1 else f"sha256:{digest([array])[:8]}"


def identity(f: Classifier) -> str:
    """Return a digest of the weights of a classifier, or "not identified" where they cannot be seen.

    They are the arrays and numbers in a callable pytree, with what is static in it, and what the method `weights()` of
    the classifier, or of a leaf of it, returns: a mapping from names to arrays. A plain function shows neither.

    Example:
        >>> from jax.tree_util import Partial
        >>> identity(lambda x: x), identity(Partial(lambda w, x: w * x, np.ones(3)))
        ('not identified', 'sha256:...')
    """
    arrays, static = split_callable(f)
    parts = [digest(arrays)] if arrays else []
    parts += [repr(leaf) for leaf in static.leaves if isinstance(leaf, (bool, int, float, complex, str))]
    for leaf in static.leaves:
        own: Callable[[], Mapping[str, Any]] | None = getattr(leaf, "weights", None)
        if callable(own) and not isinstance(leaf, type):
            weights = own()
            parts.append(digest([weights[name] for name in weights]) + ",".join(weights))
    if not parts:
        return NOT_IDENTIFIED
    parts.append(described(static.treedef))
    return f"sha256:{hashlib.sha256(' '.join(parts).encode()).hexdigest()}"


def input_digest(x: np.ndarray) -> int:
    """Return 63 bits of a digest of an input: of its dtype, shape and content.

    Example:
        >>> [input_digest(x) == input_digest(np.zeros(3)) for x in (np.zeros(3), np.ones(3))]
        [True, False]
    """
    return int(digest([x])[:16], 16) >> 1


def _brief(value: Any) -> str:
    """Return a value as words, digests and long lists by their beginning."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:24]}..."


def _words(name: str, settings: Mapping[str, Any]) -> str:
    """Return a setting as words; a key as the seed that it is of, too."""
    value = settings.get(name)
    if name == "key" and isinstance(value, list):
        return f"{value} (seed {value[0] * 2**32 + value[1]})"
    return f"weights {_brief(value)}" if name == "classifier" and value != NOT_IDENTIFIED else _brief(value)


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs between two sets of settings, in words, by name.

    Example:
        >>> differences({"n": 100_000, "mode": "fixed"}, {"n": 5000, "mode": "fixed"})
        {'n': '100000 in the file, 5000 now'}
    """
    names = [*found, *(name for name in wanted if name not in found)]
    if found.get("noise") != wanted.get("noise"):  # then its exact digest differs, too, and says nothing more
        names = [name for name in names if name != "noise_exactly"]
    words = {name: f"{_words(name, found)} in the file, {_words(name, wanted)} now" for name in names}
    return {name: words[name] for name in names if found.get(name) != wanted.get(name)}
