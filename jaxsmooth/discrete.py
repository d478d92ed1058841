"""Noises that replace whole features, and how many changed features a probability under them certifies: norm 0.

A change of r features moves the distribution of the noisy input from P to Q. Where the ratio P / Q is constant on a few
regions, the least that the top class can keep is found by hand: its probability is put where P / Q is largest, and what
Q gives to these places is left (Lee et al. 2019, arXiv:1906.04948). All of this is computed in exact fractions. So a
radius of these noises is a whole number, and nothing of it is rounded.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxsmooth._draws import random_words
from jaxsmooth.arguments import as_integer, as_key, as_numbers, in_brief, is_traced

__all__ = ["Ablation", "BitFlips", "DiscreteNoise", "Regions", "Replacement"]

Regions = Sequence[tuple[int | Fraction, int | Fraction]]
"""Pairs (P, Q) of regions in which the ratio P / Q is constant: probabilities, or whole numbers in proportion to them.
P and Q add up to the same total."""

_MOST_FEATURES = 2**20
_MOST_VALUES = 2**16
_BITS = 64  # of a draw
_NEAR_ONE = 1 - Fraction(1, 2**53)  # no float64 below 1 is above it


class DiscreteNoise(ABC):
    """A noise that replaces features, for inputs of integers or floats; certifies how many features may change.

    A certificate of radius r holds for every input that differs from x in at most r features. A label with radius 0 is
    the class of x itself. Settings are static: others compile other programs.

    Inherit from it to certify under a kernel of your own: in a frozen dataclass, registered with
    `jax.tree_util.register_static`, that has the methods `sample`, `add` and `regions`. Its fields tell it from another
    one. A certificate is true only if these three belong together, for every input that is let in:

    - give `domain`, if the inputs are integers in [0, domain). Others are refused, but traced ones cannot be: let `add`
      take their remainder;
    - override `refuse_inputs(x)` for any other condition;
    - give `variation`, if what `sample` draws is not exactly distributed as `regions` says.

    Example:
        >>> @jax.tree_util.register_static
        ... @dataclass(frozen=True)
        ... class HalfOfTheBits(DiscreteNoise):  # each bit is drawn again with probability 1/2
        ...     domain = 2
        ...     def sample(self, key, shape, dtype=jnp.int32):
        ...         return jax.random.bernoulli(key, 0.25, shape).astype(dtype)  # exact: 1/4 has two binary digits
        ...     def add(self, x, noise):
        ...         return (x % 2) ^ noise
        ...     def regions(self, changes):
        ...         row = [math.comb(changes, i) * Fraction(3**i, 4**changes) for i in range(changes + 1)]
        ...         return [list(zip(row, row[::-1]))]
        >>> HalfOfTheBits().unit_radius([0.6, 0.9, 0.99])
        array([0., 1., 5.])
    """

    norm = 0
    variation = Fraction(0)
    """A bound on the total variation between what is drawn for an input and the exact distribution."""
    most_changes = 128
    """The largest radius that is computed: larger ones are given as this one."""
    domain: Any = None
    """How many values a feature may have, integers from 0 on; None for any inputs."""

    def refuse_inputs(self, x: Any) -> None:
        """Refuse inputs `[N, *event]` that are not integers in [0, domain), if that is given. Traced ones pass."""
        if self.domain is None:
            return
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(
                f"x must be integers in [0, {self.domain}) for this noise, got dtype {x.dtype}: convert it with "
                ".astype(int)"
            )
        if jnp.iinfo(x.dtype).max < self.domain - 1:
            raise TypeError(f"x must have a dtype that holds {self.domain} values for this noise, got {x.dtype}")
        if math.prod(x.shape[1:]) > _MOST_FEATURES:
            raise ValueError(f"x must have at most {_MOST_FEATURES} features for this noise, got shape {x.shape}")
        if is_traced(x) or x.size == 0:
            return
        least, most = int(x.min()), int(x.max())
        if least < 0 or most >= self.domain:
            raise ValueError(
                f"x must be integers in [0, {self.domain}) for this noise, got values from {least} to {most}"
            )

    @property
    def scale(self) -> ArrayLike:
        """1: the radius is a number of features."""
        return np.float32(1)

    @abstractmethod
    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.int32) -> jax.Array:
        """Draw what is done to each feature, for inputs of this shape: integers in any dtype."""

    @abstractmethod
    def add(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Return noisy inputs, from inputs and what is done to each of their features."""

    @abstractmethod
    def regions(self, changes: int) -> Iterable[Regions]:
        """Return the regions of constant ratio for inputs that differ in this many features, of at least 1.

        Pairs of inputs that differ in the same number of features may have other regions. Then there is one list of
        regions for each kind of pair, and a radius holds for all of them.
        """

    def unit_radius(self, probability: ArrayLike) -> np.ndarray:
        """Return how many changed features a lower bound on a probability certifies; -1 where not even the class of x.

        In float64, on the host, without rounding.
        """
        p = as_numbers("probability", probability, "numbers in [0, 1]")
        if not ((p >= 0) & (p <= 1)).all():  # NaN, too
            raise ValueError(f"probability must lie in [0, 1], got {in_brief(probability)}")
        return np.searchsorted(self.least_probabilities(), p, side="right") - 1.0

    def least_probabilities(self) -> np.ndarray:
        """Return the least float64 that certifies 0, 1, 2, ... changed features: each just above the exact number."""
        return _least_floats(self)


def threshold(regions: Regions) -> Fraction:
    """Return the largest probability under P of a set that may have a probability of at most 1/2 under Q.

    A top class with a larger probability at x keeps more than 1/2 at the other input, whatever the classifier is: the
    lemma of Neyman and Pearson for regions of constant ratio (Lee et al. 2019, arXiv:1906.04948, Lemma 2).

    Args:
        regions: pairs (P, Q).

    Raises:
        ValueError: P and Q do not add up to the same total, or one of them is negative.

    Example:
        >>> threshold([(Fraction(1, 4), Fraction(0)), (Fraction(3, 4), Fraction(3, 4)), (Fraction(0), Fraction(1, 4))])
        Fraction(3, 4)
    """
    total = sum(p for p, _ in regions)
    if total <= 0 or sum(q for _, q in regions) != total or any(min(pair) < 0 for pair in regions):
        raise ValueError(f"regions must have the same total under both inputs, none negative, got {in_brief(regions)}")
    used = 0
    kept = 0
    # The worst set takes the points with the largest P / Q first: they use up most of P for the least of Q.
    present = [pair for pair in regions if any(pair)]
    for p, q in sorted(present, key=functools.cmp_to_key(_by_ratio)):
        if 2 * (kept + q) > total:
            return (Fraction(used) + Fraction(total - 2 * kept) * p / (2 * q)) / total
        used += p
        kept += q
    raise AssertionError("Q adds up to the total")


def _as_regions(kind: Any) -> Regions:
    """Return a list of pairs of exact numbers."""
    try:
        pairs = [(p, q) for p, q in kind]
    except TypeError:
        raise TypeError(f"regions must return lists of pairs (P, Q), got {in_brief(kind)}") from None
    if not all(isinstance(number, (int, Fraction)) for pair in pairs for number in pair):
        raise TypeError(f"regions must return pairs of integers or of fractions.Fraction, got {in_brief(pairs)}")
    return pairs


def _by_ratio(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> Any:
    """Compare two regions: negative where P / Q is larger in the first one."""
    return ours[1] * theirs[0] - theirs[1] * ours[0]


@functools.lru_cache(maxsize=64)
def _least_floats(noise: DiscreteNoise) -> np.ndarray:
    """Return the least float64 probability that certifies 0, 1, 2, ... changed features, rising."""
    variation = Fraction(noise.variation)
    least = [_above(Fraction(1, 2) + variation)]
    for changes in range(1, noise.most_changes + 1):
        kinds = [_as_regions(kind) for kind in noise.regions(changes)]
        if not kinds:
            raise ValueError(f"regions({changes}) must return at least one list of pairs (P, Q), got none")
        worst = max(map(threshold, kinds)) + variation
        if worst >= _NEAR_ONE:
            break
        # A radius holds for all smaller numbers of changes, too.
        least.append(max(least[-1], _above(worst)))
    return np.array(least)


def _above(value: Fraction) -> float:
    """Return the least float64 above a fraction."""
    nearest = float(value)
    return nearest if Fraction(nearest) > value else math.nextafter(nearest, math.inf)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Ablation(DiscreteNoise):
    """Keep a few positions of an input, chosen uniformly without replacement, and mask all others.

    A change of r positions is seen only if one of them is kept, which has the probability 1 - C(d - r, k) / C(d, k) for
    k of d positions. So a bound p certifies the r for which p less this is above 1/2 (Levine & Feizi 2020,
    arXiv:1911.09272, Theorem 1). With `bound="runner_up"` it must be above the upper bound of the runner-up plus this,
    which certifies more where the other classes share the rest. The certificate holds for any mask value; one that no
    input has lets f tell what is masked. Train f on masked inputs.

    Positions are chosen by 64-bit draws. Their distance from the exact distribution, at most d^2 / 2^65, is taken off
    the probability.

    Args:
        positions: a shape that broadcasts against that of one input, each entry being a position: `(28, 28, 1)` for the
            pixels of a grey image or, with all its channels, of a coloured one of shape (28, 28, 3); `(1, 32, 32)`
            where channels come first; `(64,)` for 64 tokens. At most 2^20 positions.
        kept: how many are kept.
        mask: what the others become, a number that the dtype of the inputs holds: say -1 for pixels in [0, 1], and the
            id of a word that no text has for tokens.

    Raises:
        ValueError, TypeError: an argument is not as described, or an input does not fit.

    Example:
        >>> noise = Ablation(positions=(784,), kept=45, mask=-1)
        >>> noise.unit_radius([0.7, 0.99])
        array([ 3., 11.])
        >>> noise = Ablation(positions=(6,), kept=2, mask=0)
        >>> noise.add(jnp.array([5, 6, 7, 8, 9, 10]), noise.sample(jax.random.key(0), (6,)))
        Array([ 0,  6,  0,  0,  0, 10], dtype=int32)
    """

    positions: tuple[int, ...]
    kept: int
    mask: float

    def __post_init__(self) -> None:
        positions: Any = (self.positions,) if isinstance(self.positions, int) else self.positions
        if not isinstance(positions, (tuple, list)) or not positions:
            raise TypeError(f"positions must be a shape, such as (28, 28, 1), got {in_brief(self.positions)}")
        positions = tuple(as_integer("positions", size, 1, _MOST_FEATURES) for size in positions)
        number = math.prod(positions)
        if number > _MOST_FEATURES:
            raise ValueError(f"positions must be at most {_MOST_FEATURES}, got {number}")
        mask = as_numbers("mask", self.mask, "a finite number")
        if mask.shape != () or not np.isfinite(mask):
            raise ValueError(f"mask must be a finite number, got {in_brief(self.mask)}")
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "kept", as_integer("kept", self.kept, 1, number))
        object.__setattr__(self, "mask", int(mask) if mask == int(mask) else float(mask))

    @property
    def variation(self) -> Fraction:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The probability that two of the 64-bit draws are equal, at most."""
        return Fraction(math.comb(math.prod(self.positions), 2), 2**_BITS)

    @property
    def most_changes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All positions."""
        return math.prod(self.positions)

    def refuse_inputs(self, x: Any) -> None:
        """Refuse inputs `[N, *event]` whose shape the positions do not fit, or whose dtype the mask does not."""
        event = tuple(x.shape[1:])
        if len(event) != len(self.positions) or not self._fit(event):
            raise ValueError(
                f"positions of the noise must broadcast against the shape of an input, {event}, with as many axes, got "
                f"{self.positions}"
            )
        is_integer = jnp.issubdtype(x.dtype, jnp.integer)
        with np.errstate(over="ignore"):
            kept = float(np.asarray(self.mask).astype(x.dtype))
        if not np.isfinite(kept) or (is_integer and kept != self.mask):
            raise ValueError(
                f"mask of the noise must be a number that inputs of dtype {x.dtype} can have, got {self.mask}"
            )

    def _fit(self, event: Sequence[int]) -> bool:
        return all(own in (1, size) for own, size in zip(self.positions, event, strict=True))

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.int32) -> jax.Array:
        """Draw which positions are kept: 1 there, and 0 elsewhere, for inputs of this shape or batches of them."""
        shape = tuple(shape)
        rank = len(self.positions)
        if len(shape) < rank or not self._fit(shape[len(shape) - rank :]):
            raise ValueError(f"shape must end with one that {self.positions} broadcasts against, got {shape}")
        batch = shape[: len(shape) - rank]
        number = math.prod(self.positions)
        words = random_words(as_key(key), 2 * math.prod(batch) * number).reshape(2, -1, number)
        kept = jax.vmap(functools.partial(_smallest, self.kept))(words[0], words[1])
        return jnp.broadcast_to(kept.reshape(*batch, *self.positions), shape).astype(dtype)

    def add(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Return inputs with the mask value where a position is not kept, in the dtype of x."""
        return jnp.where(noise != 0, x, jnp.asarray(self.mask, x.dtype))

    def regions(self, changes: int) -> Iterable[Regions]:
        """Return the regions: a changed position is kept, under either input, or none is."""
        number = math.prod(self.positions)
        missed = math.comb(max(number - changes, 0), self.kept)
        met = math.comb(number, self.kept) - missed
        return [[(met, 0), (missed, missed), (0, met)]]

    def parameters(self) -> dict[str, ArrayLike]:
        """Return what a log says of the noise."""
        shape = "x".join(map(str, self.positions))
        return {"positions": shape, "kept": str(self.kept), "mask": repr(self.mask)}  # pyright: ignore


def _smallest(kept: int, first: jax.Array, second: jax.Array) -> jax.Array:
    """Return where the `kept` smallest of d numbers are, each of two words; equal ones in order of their places."""
    # Sorting would take ten times as long. The k-th smallest word is found bit by bit instead, by counting.
    last = _rank(first, jnp.int32(kept))
    is_tie = first == last
    left = kept - (first < last).sum(dtype=jnp.int32)
    # Among equal first words the second ones decide, others being moved out of the way.
    low = _rank(jnp.where(is_tie, second, np.uint32(2**32 - 1)), left)
    chosen = (first < last) | (is_tie & (second < low))
    at_last = is_tie & (second == low)
    return chosen | (at_last & (jnp.cumsum(at_last) <= kept - chosen.sum(dtype=jnp.int32)))


def _rank(words: jax.Array, rank: jax.Array) -> jax.Array:
    """Return the word of a rank, counted from 1, among `u32[d]`."""

    def set_bit(at: Any, found: jax.Array) -> jax.Array:
        larger = found | (np.uint32(2**31) >> jnp.uint32(at))
        return jnp.where((words < larger).sum(dtype=jnp.int32) < rank, larger, found)

    return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros_like(words[0]))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Replacement(DiscreteNoise):
    """Keep each feature with some probability, and else replace it by another value, uniformly chosen.

    The discrete counterpart of Gaussian noise, for tokens or grey levels (Lee et al. 2019, arXiv:1906.04948). Inputs
    hold integers in [0, values). All of their features are treated alike and independently; there may be 2^20.

    The probability is realised exactly, as a multiple of 2^-64. What the choice of another value errs by is taken off
    the probability of a class: at most 2^-44 times the number of values.

    Args:
        values: how many values a feature may have, from 2 to 65,536.
        keep: probability that a feature stays as it is, in [1 / values, 1).

    Raises:
        ValueError, TypeError: an argument is not as described, or an input does not fit.

    Example:
        >>> noise = Replacement(values=256, keep=0.2)
        >>> noise.unit_radius([0.6, 0.7, 0.9, 0.999])
        array([0., 1., 2., 7.])
    """

    values: int
    keep: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", as_integer("values", self.values, 2, _MOST_VALUES))
        keep = as_numbers("keep", self.keep, "a number in [1 / values, 1)")
        if keep.shape != () or not 1 / self.values <= keep < 1:
            raise ValueError(f"keep must be a number in [1 / values, 1) for {self.values} values, got {self.keep!r}")
        object.__setattr__(self, "keep", float(keep))

    @property
    def domain(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many values a feature may have."""
        return self.values

    @property
    def variation(self) -> Fraction:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the remainder of a 64-bit draw differs from a uniform choice by, for all features together."""
        return Fraction(self.values * _MOST_FEATURES, 2**_BITS)

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.int32) -> jax.Array:
        """Draw how far each feature moves on, past the last value to the first: 0 where it is kept."""
        size = math.prod(shape)
        words = random_words(as_key(key), 4 * size).reshape(4, *shape)
        is_kept = _is_below(words[0], words[1], _bar(self.keep))
        # A number of 64 bits modulo m: (high mod m * (2^32 mod m) + low mod m) mod m, all below 2^32 for m < 2^16.
        most = np.uint32(self.values - 1)
        power = np.uint32(2**32 % (self.values - 1))
        other = ((words[2] % most) * power + words[3] % most) % most
        return jnp.where(is_kept, 0, 1 + other.astype(jnp.int32)).astype(dtype)

    def add(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Return the values after the moves, in the dtype of x.

        A traced value out of range, which could not be refused, counts as its remainder. The certificate is true then.
        """
        wide = x if x.dtype.itemsize >= 4 else x.astype(jnp.int32)  # where `values` is a number
        moved = (wide % self.values).astype(jnp.int32) + noise.astype(jnp.int32)
        return (moved % self.values).astype(x.dtype)

    def regions(self, changes: int) -> Iterable[Regions]:
        """Return the regions: by how many more of the changed features look like the one input than like the other."""
        leads = _leads(self.values, _bar(self.keep), changes)
        # The lead of the one input is the lag of the other.
        return [list(zip(leads, leads[::-1], strict=True))]

    def parameters(self) -> dict[str, ArrayLike]:
        """Return what a log says of the noise."""
        return {"values": str(self.values), "keep": repr(self.keep)}  # pyright: ignore[reportReturnType]


@jax.tree_util.register_static
@dataclass(frozen=True)
class BitFlips(DiscreteNoise):
    """Flip the bits of an input independently, zeros and ones with probabilities of their own.

    For binary features and graphs, where zeros are many and ones are few (Bojchevski et al. 2020, arXiv:2008.12952).
    Inputs hold the integers 0 and 1. The radius is the number of flipped bits, whichever they are. Both probabilities
    are realised exactly, as multiples of 2^-64.

    Args:
        add_one: probability that a 0 becomes a 1, in (0, 1/2].
        remove_one: probability that a 1 becomes a 0, in (0, 1/2].

    Raises:
        ValueError, TypeError: an argument is not as described, or an input does not fit.

    Example:
        >>> BitFlips(add_one=0.01, remove_one=0.4).unit_radius([0.8, 0.95, 0.9999])
        array([0., 0., 3.])
        >>> BitFlips(add_one=0.2, remove_one=0.2).unit_radius([0.8, 0.95, 0.9999])
        array([0., 1., 7.])
    """

    add_one: float
    remove_one: float

    most_changes = 48
    domain = 2

    def __post_init__(self) -> None:
        for name in ("add_one", "remove_one"):
            value = as_numbers(name, getattr(self, name), "a number in (0, 1/2]")
            if value.shape != () or not 0 < value <= 0.5:
                raise ValueError(f"{name} must be a number in (0, 1/2], got {getattr(self, name)!r}")
            object.__setattr__(self, name, float(value))

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.int32) -> jax.Array:
        """Draw, for each feature, 1 if a 0 there would flip, plus 2 if a 1 there would."""
        size = math.prod(shape)
        words = random_words(as_key(key), 2 * size).reshape(2, *shape)
        flips = [_is_below(words[0], words[1], _bar(p)).astype(jnp.int32) for p in (self.add_one, self.remove_one)]
        return (flips[0] + 2 * flips[1]).astype(dtype)

    def add(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Return the bits after the flips, in the dtype of x.

        A traced value that is not 0, and could not be refused, counts as 1. The certificate is true then.
        """
        bit = (x != 0).astype(jnp.int32)
        flips = (noise.astype(jnp.int32) >> bit) & 1
        return (bit ^ flips).astype(x.dtype)

    def regions(self, changes: int) -> Iterable[Regions]:
        """Return the regions for every way in which the changes may be added and removed ones."""
        bars = _bar(self.add_one), _bar(self.remove_one)
        for added in range(changes + 1):
            removed = changes - added
            # Seen from the other input the added ones are removed, and the removed ones added.
            yield list(zip(_ones(*bars, added, removed), _ones(*bars, removed, added)[::-1], strict=True))

    def parameters(self) -> dict[str, ArrayLike]:
        """Return what a log says of the noise."""
        return {"add_one": repr(self.add_one), "remove_one": repr(self.remove_one)}  # pyright: ignore


@functools.lru_cache(maxsize=64)
def _leads(values: int, bar: int, changes: int) -> tuple[int, ...]:
    """Return the weights of each lead: on how many more of the changed features the noisy input equals x.

    More than it equals the other input, from -changes to changes. One list follows from that of one change less.
    """
    if changes == 0:
        return (1,)
    # A feature equals x, the other input, or neither.
    equal = bar * (values - 1)
    lag = 2**_BITS - bar
    neither = lag * (values - 2)
    before = (0, 0, *_leads(values, bar, changes - 1), 0, 0)
    return tuple(lag * before[i + 2] + neither * before[i + 1] + equal * before[i] for i in range(2 * changes + 1))


@functools.lru_cache(maxsize=1024)
def _ones(add_one: int, remove_one: int, added: int, removed: int) -> tuple[int, ...]:
    """Return the weights under x of the differences between two numbers of ones, -removed to added.

    The one is among the changed bits that are 0 in x, the other among those that are 1. The ratio of P to Q depends on
    the difference only.
    """
    if added + removed == 0:
        return (1,)
    whole = 2**_BITS
    if added:
        before = _ones(add_one, remove_one, added - 1, removed)
        same, more = whole - add_one, add_one
    else:
        before = _ones(add_one, remove_one, added, removed - 1)
        same, more = whole - remove_one, remove_one
    # A bit that is 1 in x and stays so adds -1, which is where the list begins.
    return tuple(same * old + more * new for old, new in zip((*before, 0), (0, *before), strict=True))


def _bar(probability: float) -> int:
    """Return what a 64-bit word is below with this probability."""
    return round(Fraction(probability) * 2**_BITS)


def _is_below(high: jax.Array, low: jax.Array, bar: int) -> jax.Array:
    """Tell which numbers, of two words each, are below a bar of 64 bits."""
    first = np.uint32(bar >> 32)
    second = np.uint32(bar & 0xFFFFFFFF)
    return (high < first) | ((high == first) & (low < second))
