"""Checks of what the core works on: classifier, noise, inputs, ids, scores, votes."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxsmooth.arguments import (
    as_array,
    as_integer,
    as_scale,
    in_brief,
    is_traced,
    refuse_rounded,
    refuse_uncallable,
    refuse_unknown,
)
from jaxsmooth.descriptions import is_told
from jaxsmooth.types import MOST_VOTES, Noise, RandomClassifier, Votes

_ARRAY = object()
_RULES = ("fixed", "grid", "anytime", "levels", "changed", "splitting")
_NOISE_MEMBERS = {name for name in vars(Noise) if not name.startswith("_")}


class StaticCallable(NamedTuple):
    """A callable without the arrays in it. A plain function has none and is all here.

    Attributes:
        treedef: its structure.
        leaves: what is no array.
        words: of the leaves that are numbers: 1 and True are equal, and so are 0.0 and -0.0, but not one program.
    """

    treedef: Any
    leaves: tuple[Any, ...]
    words: tuple[str, ...]


def split_callable(f: Any) -> tuple[list[Any], StaticCallable]:
    """Return the arrays in a callable pytree, which jit traces, and the rest, which identifies the program.

    Raises:
        TypeError: it cannot be called, or the rest cannot be hashed.
    """
    refuse_uncallable(f.f if isinstance(f, RandomClassifier) else f)
    arrays: list[Any] = []
    rest: list[Any] = []
    words: list[str] = []
    leaves, treedef = jax.tree.flatten(f)
    for leaf in leaves:
        is_array = isinstance(leaf, (jax.Array, np.ndarray, np.generic))
        rest.append(_ARRAY if is_array else leaf)
        if is_array:
            arrays.append(leaf)
        elif isinstance(leaf, (bool, int, float, complex)):
            words.append(repr(leaf))
    static = StaticCallable(treedef, tuple(rest), tuple(words))
    try:
        hash(static)
    except TypeError as error:
        raise TypeError(
            f"f must be hashable apart from the arrays in it, which {in_brief(f)} is not: {error}"
        ) from None
    return arrays, static


def merge_callable(arrays: list[Any], static: StaticCallable) -> Callable[..., Any]:
    """Put a callable together again."""
    remaining = iter(arrays)
    leaves = [next(remaining) if leaf is _ARRAY else leaf for leaf in static.leaves]
    return jax.tree.unflatten(static.treedef, leaves)


def as_noise(noise: Any) -> Noise:
    """Return a noise of strongly typed arrays, whose scale is positive and finite unless it is traced."""
    # isinstance with a protocol does the same, and takes 20 times as long on Python 3.11.
    if isinstance(noise, type) or not all(map(partial(hasattr, noise), _NOISE_MEMBERS)):
        raise TypeError(f"noise must be an instance of Gaussian, Laplace, Uniform or the like, got {in_brief(noise)}")
    as_scale(f"the scale of {type(noise).__name__}", noise.scale)
    if not issubclass(type(noise), tuple) or hasattr(noise, "__dict__"):  # a named tuple has nothing but its fields
        _refuse_untold(noise)
    try:
        return jax.tree.map(_without_weak_type, noise)
    except TypeError:
        how = "; register its class with jax.tree_util.register_static" if noise.norm == 0 else ""
        raise TypeError(f"noise must be a pytree of numbers and arrays, got {in_brief(noise)}{how}") from None


def _refuse_untold(noise: Any) -> None:
    """Refuse a noise with settings that nothing tells from others: a program or a run could go on under others."""
    own: dict[str, Any] = getattr(noise, "__dict__", {})
    if isinstance(noise, tuple):
        lost = list(own)
    elif dataclasses.is_dataclass(noise):
        fields = dataclasses.fields(noise)
        names = {field.name for field in fields}
        # What a class computes once and keeps follows from its fields.
        lost = [name for name in own if name not in names and not hasattr(type(noise), name)]
        lost += [field.name for field in fields if not is_told(getattr(noise, field.name))]
        if not jax.tree.leaves(noise):  # JAX compares it as a whole
            lost += [field.name for field in fields if not field.compare]
    elif noise.norm == 0:
        raise TypeError(f"noise must be a dataclass with all of its settings as fields, got {in_brief(noise)}")
    else:
        return
    if lost:
        raise TypeError(
            "noise must have all of its settings as fields that are compared, of numbers, strings and the like, which "
            f"{', '.join(sorted(set(lost)))} of {in_brief(noise)} is not"
        )


def _without_weak_type(leaf: Any) -> ArrayLike:
    """Return a leaf as a strongly typed array: a weak type would compile another program."""
    if is_traced(leaf):
        return lax.convert_element_type(leaf, leaf.dtype)
    array = as_array("noise", leaf, "a pytree of numbers")
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise TypeError
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def as_inputs(x: Any, noise: Any = None) -> jax.Array:
    """Return inputs `[N, *event]` of a floating dtype as a JAX array, finite unless they are traced.

    Args:
        x: inputs.
        noise: what is done to them. If it counts features (norm 0), they may be integers.
    """
    x = as_host_inputs(x, noise)
    if isinstance(x, jax.Array):
        return _gathered(x)
    # Under jit even NumPy's arrays would be traced: this evaluates them now. A copy, because JAX reads NumPy's memory
    # later, and the caller may have written to it by then.
    with jax.ensure_compile_time_eval():
        return jnp.asarray(x.copy())


def _gathered(x: jax.Array) -> jax.Array:
    """Return inputs that are split over explicit axes of a mesh as whole ones: on one device, or traced on each.

    On such axes every operation must say how its result is split, which the gathers of samples leave open.
    """
    sharding: Any = jax.typeof(x).sharding
    kinds = zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
    explicit = {name for name, kind in kinds if kind == AxisType.Explicit}
    if explicit and not is_traced(x) and x.is_fully_addressable and jax.sharding.get_abstract_mesh().empty:
        # Outside of jit a program for one device takes no array of a mesh, even of one that is whole on each device.
        # By way of the host, since `device_put` would bind the array to a device that other arguments are not on.
        return jnp.asarray(np.asarray(x))
    used = {name for axis in sharding.spec for name in (axis if isinstance(axis, tuple) else (axis,))}
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec())) if used & explicit else x


def as_host_inputs(x: Any, noise: Any = None) -> jax.Array | np.ndarray:
    """Return inputs as `as_inputs` does, but arrays that are not JAX's as NumPy's, in a dtype that JAX has."""
    is_counted = getattr(noise, "norm", None) == 0
    expected = f"a batch [N, *event] of {'integers or ' if is_counted else ''}real floating-point inputs"
    array = as_array("x", x, expected)
    dtype = array.dtype
    shape = array.shape
    if not jnp.issubdtype(dtype, jnp.floating) and not (is_counted and jnp.issubdtype(dtype, jnp.integer)):
        cure = (
            "convert it to integers"
            if is_counted
            else "convert numbers such as pixels, since the noise is in their units; token ids need a noise of norm 0, "
            "such as Ablation"
        )
        raise TypeError(f"x must be {expected}, got dtype {dtype}: {cure}")
    if len(shape) < 2:
        raise ValueError(f"x must be {expected}, got shape {shape}: one input is x[None]")
    if 0 in shape[1:]:
        raise ValueError(f"x must be {expected} with at least one feature, got shape {shape}")
    refuse: Callable[[Any], None] | None = getattr(noise, "refuse_inputs", None)
    if refuse is not None:
        refuse(array)
    if is_traced(x):
        return x
    if isinstance(array, np.ndarray) and dtype != jax.dtypes.canonicalize_dtype(dtype):
        array = _narrowed(array, noise)
    # Whether each input is finite is computed where the array is. On a CPU NumPy has nothing to compile first.
    axes = tuple(range(1, array.ndim))
    if isinstance(array, np.ndarray) or next(iter(array.devices())).platform == "cpu":
        finite = np.isfinite(np.asarray(array)).all(axis=axes)
    else:
        with jax.ensure_compile_time_eval():
            finite = np.asarray(jnp.isfinite(array).all(axis=axes))
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(f"x must be finite, got NaN or infinity in {bad.size} inputs, the first at index {bad[0]}")
    return array


def _narrowed(x: np.ndarray, noise: Any) -> np.ndarray:
    """Return inputs in the dtype that JAX has for theirs."""
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    with np.errstate(over="ignore"):
        narrow = x.astype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        if not np.array_equal(narrow, x):
            raise ValueError(f"x must fit into {dtype}, got values from {x.min()} to {x.max()}")
    elif noise is not None and noise.norm != 0 and not is_traced(noise.scale):
        refuse_rounded(x, narrow, noise.scale, noise.norm)
    return narrow


def as_ids(ids: Any, inputs: int) -> ArrayLike:
    """Return the ids of the inputs as `u32[N]`."""
    ids = as_array("ids", ids, f"{inputs} integers", host=True)
    if not jnp.issubdtype(ids.dtype, jnp.integer) and ids.size:
        raise TypeError(f"ids must be integers, got dtype {ids.dtype}")
    if ids.shape != (inputs,):
        raise ValueError(f"ids must have one entry for each of the {inputs} inputs, got shape {ids.shape}")
    is_wider = isinstance(ids, np.ndarray) and ids.dtype != np.uint32 and ids.size > 0
    if is_wider and not (ids.min() >= 0 and ids.max() < 2**32):
        raise ValueError(f"ids must lie in [0, 2**32), got values from {ids.min()} to {ids.max()}")
    return ids.astype(np.uint32)


def as_first(first: Any, n: int) -> Any:
    """Return the index of the first sample as a u32 scalar such that n samples fit into 32 bits."""
    if not is_traced(first) and not isinstance(first, jax.Array):
        return np.uint32(as_integer("first", first, 0, 2**32 - n))
    if first.shape != () or not jnp.issubdtype(first.dtype, jnp.integer):
        raise TypeError(f"first must be an integer scalar, got shape {first.shape} and dtype {first.dtype}")
    if not is_traced(first):
        as_integer("first", int(first), 0, 2**32 - n)
    return first.astype(jnp.uint32)


def as_sizes(n0: Any, n: Any, batch_size: Any = 1) -> tuple[int, int, int]:
    """Return numbers of selection and estimation votes, at most 2^30 together, and the rows of a batch."""
    n = as_integer("n", n, 1, MOST_VOTES - 1)
    return as_integer("n0", n0, 1, MOST_VOTES - n), n, as_integer("batch_size", batch_size, 1, MOST_VOTES)


def as_n(n: Any, least: int = 1) -> int:
    """Return a number of samples for each input."""
    return as_integer("n", n, least, MOST_VOTES)


def as_batch_size(batch_size: Any) -> int:
    """Return the most rows that go through the classifier at once."""
    return as_integer("batch_size", batch_size, 1, MOST_VOTES)


def shape_of_scores(scores: Any, rows: int) -> tuple[int, ...]:
    """Return the shape `(*components, K)` of one row of real scores `[B, *components, K]`, K >= 2."""
    expected = f"real scores of shape [{rows}, *components, K] with K >= 2 classes"
    shape = getattr(scores, "shape", None)
    dtype = getattr(scores, "dtype", None)
    if shape is None or dtype is None:
        raise TypeError(f"f must return {expected}, got {type(scores).__name__}")
    if len(shape) < 2 or shape[0] != rows or shape[-1] < 2 or 0 in shape[1:]:
        raise ValueError(f"f must return {expected}, got shape {tuple(shape)}")
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype == np.bool_):
        raise TypeError(f"f must return {expected}, got dtype {dtype}")
    return tuple(shape[1:])


def as_votes(votes: Any) -> Votes:
    """Return votes whose fields fit together: counts in `i32`, at most as many as there were samples."""
    if not isinstance(votes, Votes):
        own = ": give its .votes" if isinstance(getattr(votes, "votes", None), Votes) else ""
        raise TypeError(f"votes must be jaxsmooth.Votes(counts=..., n=...), got {type(votes).__name__}{own}")
    refuse_unknown("rule", votes.rule, _RULES)
    counts = _as_counts("counts", votes.counts)
    n = _as_samples(votes.n, counts.shape[0])
    _refuse_more_votes(counts, n)
    selection = None if votes.selection is None else _as_counts("selection", votes.selection)
    if selection is not None and selection.shape != counts.shape:
        raise ValueError(f"selection and counts must have one shape, got {selection.shape} and {counts.shape}")
    lost = _as_lost(votes.lost, len(counts))
    return replace(votes, counts=counts, n=n, selection=selection, lost=lost)


def refuse_stopped(votes: Votes) -> None:
    """Refuse votes that do not support a decision for a fixed n under one noise."""
    if votes.rule == "fixed":
        return
    reasons = {
        "levels": "each input was voted on under a noise that other votes chose",
        "changed": "they are votes of another version of the classifier",
        "splitting": "they are the votes of all places of the cuts, which is no sample",
    }
    stopped = "their sampling stopped because of the votes, and a bound or test for a fixed n would be false"
    reason = reasons.get(votes.rule, stopped)
    raise ValueError(
        f"votes must be of the rule 'fixed', got {votes.rule!r}: {reason}. They support only the certificate that "
        "their own mode decided"
    )


def _as_counts(name: str, counts: Any) -> jax.Array | np.ndarray:
    """Return vote counts as `i32[N, *components, K]`, not negative unless they are traced."""
    expected = "integer vote counts of shape [N, *components, K] with K >= 2 classes"
    given = counts
    counts = as_array(name, counts, expected, host=True)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise TypeError(f"{name} must be {expected}, got dtype {counts.dtype}")
    if counts.ndim < 2 or counts.shape[-1] < 2 or 0 in counts.shape[1:]:
        raise ValueError(f"{name} must be {expected}, got shape {counts.shape}")
    if isinstance(counts, np.ndarray) and counts.size:
        if counts.min() < 0:
            raise ValueError(f"{name} must not be negative, got {counts.min()}")
        most = int(counts.sum(axis=-1, dtype=np.float64).max())
        if most > 2**31 - 1:
            raise ValueError(f"{name} must add up to at most 2**31 - 1 votes for each input, got {most}")
    if isinstance(given, jax.Array):  # what JAX gave stays JAX's
        narrow = given.astype(np.int32) if given.dtype != np.int32 else given
        if is_traced(given) and jnp.iinfo(given.dtype).max > 2**31 - 1:
            # It could not be refused, and must not wrap around to another count. -1 is no count.
            narrow = jnp.where((given < 0) | (given > 2**31 - 1), -1, narrow)
        return narrow
    return counts.astype(np.int32)


def _as_samples(n: Any, inputs: int) -> Any:
    """Return the number of samples: a static int for all inputs, or `i32[N]`."""
    if not hasattr(n, "shape") or np.ndim(n) == 0:
        return as_n(n)
    n = as_array("n", n, f"an integer or {inputs} integers", host=True)
    if not jnp.issubdtype(n.dtype, jnp.integer):
        raise TypeError(f"n must be an integer or integers, got dtype {n.dtype}")
    if n.shape != (inputs,):
        raise ValueError(f"n must be one integer, or one for each of the {inputs} inputs, got shape {n.shape}")
    if isinstance(n, np.ndarray) and n.size and not (n.min() >= 0 and n.max() <= MOST_VOTES):
        raise ValueError(f"n must lie in [0, {MOST_VOTES}], got values from {n.min()} to {n.max()}")
    return n.astype(np.int32)


def _refuse_more_votes(counts: Any, n: Any) -> None:
    """Refuse more votes than there were samples, where both are known."""
    if not is_traced(counts) and not is_traced(n) and counts.size:
        cast = np.asarray(counts).sum(axis=-1, dtype=np.int64).reshape(len(counts), -1).max(axis=1)
        if (cast > n).any():
            at = int(np.argmax(cast > n))
            samples = np.broadcast_to(n, cast.shape)[at]
            raise ValueError(f"counts must add up to at most n = {samples} votes for each input, got {cast[at]}")


def _as_lost(lost: Any, inputs: int) -> Any:
    """Return the radius that rounding takes off each input, `f32[N]`; None where it is not known."""
    if lost is None:
        return None
    lost = as_array("lost", lost, f"{inputs} radii", host=True)
    if not jnp.issubdtype(lost.dtype, jnp.floating) and not jnp.issubdtype(lost.dtype, jnp.integer):
        raise TypeError(f"lost must be radii, got dtype {lost.dtype}")
    if lost.shape != (inputs,):
        raise ValueError(f"lost must have one radius for each of the {inputs} inputs, got shape {lost.shape}")
    if isinstance(lost, np.ndarray) and not (lost >= 0).all():
        raise ValueError(f"lost must not be negative or NaN, got {lost}")
    return lost.astype(np.float32)
