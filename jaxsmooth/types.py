"""The values that cross the package: votes, predictions, certificates, and what a noise and a classifier are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxsmooth._foreign import kind_of

__all__ = ["ABSTAIN", "Certificate", "Classifier", "Noise", "Prediction", "RandomClassifier", "Votes"]

Array = jax.Array | np.ndarray
"""What a decision returns: arrays of JAX where the counts are JAX's, else of NumPy."""

MOST_VOTES = 2**30
"""Most votes of one input: the sum of two such numbers still fits into 32 bits, unsigned."""

ABSTAIN = -1
"""The label of an input on which the smoothed classifier abstains."""


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, kw_only=True, eq=False)
class Votes:
    """Votes for `N` inputs, with how they came about: all that passes from sampling to deciding.

    A decision is valid only for votes that were drawn in a certain way, so the votes say how they were drawn, and a
    decision that they do not support is refused. It is a pytree: `n` is static where it is an int.

    Attributes:
        counts: `i32[N, *components, K]`, the votes of each class. A plain classifier has no components; a segmentation
            has one for each pixel.
        n: number of samples behind the counts: an int for all inputs, or `i32[N]`. Samples with invalid scores vote
            for no class and still count here.
        selection: `i32[N, *components, K]`, independent votes that choose the class which the counts are about; None
            where there are none, as after `predict`.
        lost: `f32[N]`, the radius that rounding the input takes off each certificate, as `noise.lost_radius(x)` gives
            it; None where the noise does not round.
        rule: what decided how many samples were drawn. "fixed": nothing in `counts` did, so that `certificate` holds.
            "grid" and "anytime": the sampling stopped because of the counts. "levels": each input was voted on under a
            noise that other votes chose. "changed": they are of another version of what was certified.
            "splitting": they are of all places of the cuts, and nothing was drawn.
        batch_size: the rows of a batch, where votes depend on it: those of a `RandomClassifier` that draws for the
            batch as a whole. None where they do not.

    Example:
        >>> votes = Votes(counts=np.array([[90, 10]]), n=100, selection=np.array([[9, 1]]))
        >>> (votes + votes).counts
        array([[180,  20]], dtype=int32)
    """

    counts: Any
    n: Any
    selection: Any = None
    lost: Any = None
    rule: str = "fixed"
    batch_size: int | None = None

    @property
    def components(self) -> int:
        """Number of components: 1 for a plain classifier."""
        return math.prod(np.shape(self.counts)[1:-1])

    def __add__(self, other: "Votes") -> "Votes":
        """Return the votes of both, which must be of the same inputs and of different samples.

        Draw the second votes under another key, or with a `first` beyond the samples of the first ones. Fix how many
        there will be in all before you look at any: a bound for a fixed n is false if the votes decide to go on.

        Raises:
            ValueError: the sampling of one stopped because of its counts: such votes do not add up. Or they differ in
                shape or batch size, or one has selection votes, or a lost radius, and the other has none. Or they are
                more than 2^30.
        """
        if not isinstance(other, Votes):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        if self.rule != "fixed" or other.rule != "fixed":
            raise ValueError(f"only votes of the rule 'fixed' add up, got {self.rule!r} and {other.rule!r}")
        if (self.selection is None) != (other.selection is None):
            raise ValueError("votes with selection votes and votes without them do not add up")
        if (self.lost is None) != (other.lost is None):
            raise ValueError("votes whose lost radius is known and votes without it do not add up")
        selection = None if self.selection is None else _sum("selection", self.selection, other.selection)
        lost = None if self.lost is None else jnp.maximum(self.lost, other.lost)
        counts = _sum("counts", self.counts, other.counts)
        n = _sum_of_samples(self.n, other.n)
        if self.batch_size != other.batch_size and None not in (self.batch_size, other.batch_size):
            raise ValueError(
                f"votes that depend on the batch size add up only at one, got {self.batch_size} and {other.batch_size}"
            )
        batch_size = self.batch_size or other.batch_size
        return Votes(counts=counts, n=n, selection=selection, lost=lost, batch_size=batch_size)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], tuple[int | None, str, int | None]]:
        """Return the arrays by name, and what is static."""
        is_static = isinstance(self.n, (int, np.integer))
        arrays = {"counts": self.counts, "n": None if is_static else self.n}
        arrays |= {"selection": self.selection, "lost": self.lost}
        children = tuple((jax.tree_util.GetAttrKey(name), array) for name, array in arrays.items())
        return children, (int(self.n) if is_static else None, self.rule, self.batch_size)

    @classmethod
    def tree_unflatten(cls, static: tuple[int | None, str, int | None], children: tuple[Any, ...]) -> "Votes":
        """Put the votes together again."""
        counts, samples, selection, lost = children
        n, rule, batch_size = static
        n = samples if n is None else n
        return cls(counts=counts, n=n, selection=selection, lost=lost, rule=rule, batch_size=batch_size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class RandomClassifier:
    """A base classifier that is random given its input: dropout that stays on, a denoiser that samples.

    The smoothed classifier is then the most probable class over the noise and the randomness of f together. Its
    certificate holds if that randomness is drawn again for each sample, independently of the noise: Cohen et al.'s
    theorem (arXiv:1902.02918) is about the probability of a class at each point, which is as random a function of the
    point as f makes it. Here each row gets a key of its own, made from the key of its sample, so that votes are
    repeatable and do not depend on the batch size.

    Attributes:
        f: function or callable pytree from a batch `[B, *event]` and `B` keys (Threefry) to scores
            `[B, *components, K]`. Row i of the scores depends on row i of both and on nothing else.
        of_batch: whether f draws for the batch as a whole instead, from the keys of all rows. Certificates hold, since
            each row gets numbers of its own, but votes depend on the batch size, which `Votes.batch_size` then says.

    Example:
        >>> from jaxsmooth import Gaussian, certify
        >>> def f(x, keys):
        ...     kept = jax.vmap(lambda key, row: jax.random.bernoulli(key, 0.9, row.shape))(keys, x)
        ...     return jnp.where(kept, x, 0)
        >>> x = jnp.array([[3.0, 1.0]])
        >>> certify(RandomClassifier(f), Gaussian(0.5), jax.random.key(0), x, n=1000).label
        Array([0], dtype=int32)
    """

    f: Any
    of_batch: bool = field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuse a model of another framework, which takes no keys."""
        found = kind_of(self.f)
        if found is not None:
            raise TypeError(
                f"f of a RandomClassifier must be a function of a batch and keys, got {found[0]}: "
                f"{found[1].removesuffix(')')}, random=True) makes one of it"
            )

    def __call__(self, x: Array, keys: Array | None = None, /) -> jax.Array:
        """Return the scores of a batch, each row under its key.

        Raises:
            TypeError: there are no keys.
        """
        if keys is None:
            raise TypeError("a RandomClassifier takes one key for each row: f(x, keys)")
        return self.f(x, keys)


def _sum(name: str, ours: Any, theirs: Any) -> Any:
    """Return the sum of two arrays of counts of one shape, in 32 bits. Lists become arrays: theirs would be joined."""
    ours, theirs = (value if isinstance(value, jax.Array) else np.asarray(value) for value in (ours, theirs))
    if ours.shape != theirs.shape:
        raise ValueError(f"votes must be of the same inputs, got {name} of shape {ours.shape} and {theirs.shape}")
    return ours.astype(np.int32) + theirs.astype(np.int32)


def _sum_of_samples(ours: Any, theirs: Any) -> Any:
    """Return how many samples are behind the sum of two counts: an int if both are."""
    if isinstance(ours, jax.core.Tracer) or isinstance(theirs, jax.core.Tracer):
        return ours + theirs
    total = np.add(ours, theirs, dtype=np.int64)
    if total.max(initial=0) > MOST_VOTES:
        raise ValueError(f"votes must add up to at most {MOST_VOTES} for each input, got {total.max()}")
    return int(total) if total.ndim == 0 else total.astype(np.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Prediction:
    """What the smoothed classifier predicts for each of `N` inputs.

    Attributes:
        label: `i32[N, *components]`, the class, or `ABSTAIN`.
        p_value: `f32[N, *components]`, of the two-sided binomial test of the top count against its rival.
        votes: the votes that this was decided from.
    """

    label: Array
    p_value: Array
    votes: Votes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Certificate:
    """What is certified for each of `N` inputs, in every mode.

    Attributes:
        label: `i32[N, *components]`, the certified class, or `ABSTAIN`.
        radius: `f32[N, *components]`, the certified radius in the units of `x` and the norm of the noise, 0 on
            abstention. It is rounded down. For a noise of norm 0 it is the number of features that may change, and 0
            where the class of x alone is certified. `f64` from `certify_radii`, whose radii are those that were given.
        p_lower: `f32[N, *components]`, the lower confidence bound on the probability of the selected class, rounded
            down.
        votes: the votes that this was decided from; `votes.n` says how many were drawn.
        state: what `certify_radii` goes on from, what `certify_top_k`, `certify_levels`
            and `certify_changed` add; None in the other modes.
        alpha: failure probability for each input, static; 0 where nothing was left to chance, None if it is not known.
        norm: of the radii, 0, 1 or 2, static; None if it is not known.
    """

    label: Array
    radius: Array
    p_lower: Array
    votes: Votes
    state: Any = None
    alpha: float | None = field(default=None, kw_only=True, metadata={"static": True})
    norm: int | None = field(default=None, kw_only=True, metadata={"static": True})

    @property
    def rounded(self) -> Array:
        """`bool[N]`: whether the noise rounded the input, so that the radius was reduced."""
        if self.votes.lost is None:
            return np.zeros(self.label.shape[:1], bool)
        return self.votes.lost > 0


@runtime_checkable
class Noise(Protocol):
    """A noise distribution: a pytree whose scale is a leaf, so that one compilation serves every scale.

    It may have five more methods:

    - `add(x, noise)`, where the noisy input is not x + noise;
    - `lost_radius(x)`, `f32[N]`, where it rounds inputs, as `LatticeGaussian` does: what that takes off a radius;
    - `cdf(values)`, the probabilities of less than a value and of at most it, by which `noise_report` tests what is
      drawn;
    - `refuse_inputs(x)`, which raises a ValueError or TypeError for inputs that it is not for;
    - `parameters()`, a dict from names to numbers: what a log says of the noise. By default the fields of a
      NamedTuple or dataclass that are numbers, or the scale.
    """

    @property
    def norm(self) -> int:
        """The norm in which its certificates hold: 1, 2, or 0 for the number of changed features.

        Inputs of a noise of norm 0 may be integers. Its radii are whole numbers, and its scale is 1.
        """
        ...

    @property
    def scale(self) -> ArrayLike:
        """The scalar that multiplies the noise of unit scale, in the units of `x`."""
        ...

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draw independent noise of this shape."""
        ...

    def unit_radius(self, probability: Any) -> np.ndarray:
        """Return the radius at scale 1 that follows from a lower bound on the probability of the top class."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """A base classifier: scores `[B, *components, K]` for a batch `[B, *event]`, the class being their argmax.

    A plain function is static: JAX identifies it by itself (or by its own `__eq__`). So define it once and not in a
    loop. Arrays that it closes over are compiled into the program as they were at the first call. The arrays in a
    callable pytree, such as `jax.tree_util.Partial(apply, params)`, are traced: changing them takes effect and compiles
    nothing again.

    Runs over data sets tell classifiers by the arrays in them. An object that is no pytree may have a method
    `weights()`, which returns a mapping from names to arrays; what `bridges.<framework>.as_jax` returns has one.
    """

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Return the scores of a batch."""
        ...
