"""The results, and what a noise and a classifier are."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

ABSTAIN = -1
"""The label of an input on which the smoothed classifier abstains."""


class Prediction(NamedTuple):
    """What the smoothed classifier predicts for each of `N` inputs.

    Attributes:
        label: `i32[N]`, the class, or `ABSTAIN`.
        p_value: `f32[N]`, of the two-sided binomial test of the top count against its rival.
        counts: `i32[N, K]`, the votes of each class.
    """

    label: jax.Array
    p_value: jax.Array
    counts: jax.Array


class Certificate(NamedTuple):
    """What is certified for each of `N` inputs.

    Attributes:
        label: `i32[N]`, the certified class, or `ABSTAIN`.
        radius: `f32[N]`, the certified radius in the units of `x` and the norm of the noise, 0 on abstention.
        p_lower: `f32[N]`, the lower confidence bound on the probability of the selected class.
        counts: `i32[N, K]`, the estimation votes.
        selection: `i32[N, K]`, the selection votes.
        rounded: `bool[N]`, whether the noise rounded the input, its radius being reduced for that.
    """

    label: jax.Array
    radius: jax.Array
    p_lower: jax.Array
    counts: jax.Array
    selection: jax.Array
    rounded: jax.Array


@runtime_checkable
class Noise(Protocol):
    """A noise distribution: a pytree whose scale is a leaf, so that one compilation serves every scale.

    It may have three more methods: `add(x, noise)`, where the sum is not x + noise; `lost_radius(x)`, `f32[N]`, what is
    taken off the radius of inputs that it rounds, as `LatticeGaussian` does; and `cdf(values)`, the probabilities of
    less than a value and of at most it, by which `noise_report` tests what is drawn.
    """

    @property
    def norm(self) -> int:
        """The norm in which its certificates hold: 1 or 2."""
        ...

    @property
    def scale(self) -> ArrayLike:
        """The scalar that multiplies the noise of unit scale, in the units of `x`."""
        ...

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draw independent noise of this shape."""
        ...

    def unit_radius(self, probability: Any) -> np.ndarray:
        """The radius at scale 1 that follows from a lower bound on the probability of the top class."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """A base classifier: scores `[B, K]` for a batch `[B, *event]`, the class being their argmax.

    A plain function is static: it is told apart from others by its identity (or its own `__eq__`), so define it
    once and not in a loop, and arrays that it closes over are compiled into the program as they were at the first call.
    The arrays in a callable pytree, such as `jax.tree_util.Partial(apply, params)`, are traced: changing them takes
    effect and compiles nothing anew.
    """

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Return the scores of a batch."""
        ...
