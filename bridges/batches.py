"""How many rows go where: drawn at once, through a network at once. The one place that decides it.

What the caller asks for is an upper bound on the rows of one call of the network. The sizes that something is compiled
for are of few kinds, because attacks call with ever-changing numbers of inputs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_VALUES_DRAWN = 2**21  # at once: alternating between noise and network costs time
_FEW_ROWS = 32  # the least rows of a call: the outputs of a very wide layer fit no cache anyway


class Limits(NamedTuple):
    """What a framework is fastest with.

    Attributes:
        layer_values: values in the output of the widest layer.
        gradient_values: likewise for a gradient, which keeps the outputs of all layers.
        rows: rows at once from which it gains, where they are small.
        least: fewest rows in one call where each number of rows compiles the network again; 0 where none does.
    """

    layer_values: int
    gradient_values: int
    rows: int
    least: int = 0


CPU = Limits(2**20, 2**20, 2**12)  # what a CPU's cache holds
GPU = Limits(2**26, 2**26, 2**14)  # what fills a GPU


class Plan(NamedTuple):
    """How votes are computed.

    Attributes:
        rows: most rows in one call of the network.
        drawn: noisy inputs drawn at once: whole calls of the network, or fewer where there are fewer.
    """

    rows: int
    drawn: int


@functools.lru_cache(maxsize=1024)
def plan_votes(
    samples: int, features: int, widest: int, limits: Limits, batch_size: int | None, *, even: bool = False
) -> Plan:
    """Return how many rows are drawn, and go through the network, at once.

    Args:
        samples: noisy inputs in all.
        features: values of one input.
        widest: values that the widest layer has for one input.
        limits: of the framework.
        batch_size: the caller's upper bound on `rows`, None for none.
        even: cut the samples into equal parts, so that few drawn rows are left over. This compiles for more sizes.

    Example:
        >>> plan_votes(4128, features=784, widest=64, limits=CPU, batch_size=None, even=True)
        Plan(rows=1088, drawn=2176)
        >>> plan_votes(4128, features=784, widest=64, limits=CPU, batch_size=100)
        Plan(rows=100, drawn=2200)
    """
    rows = _rows(limits.layer_values, features, widest, limits.rows)
    if batch_size is not None:
        rows = min(rows, batch_size)
    if even and limits.least == 0:
        return _plan_even(max(1, samples), rows, max(rows, _VALUES_DRAWN // features))
    return Plan(rows, rows_drawn(max(samples, min(rows, limits.least)), rows, features))


def _plan_even(samples: int, rows: int, most: int) -> Plan:
    """Return a plan of equal draws, at most `most` rows each, that leaves few rows of the last draw unused."""
    fewest = -(-samples // most)
    plans: list[tuple[int, Plan]] = []
    for draws in range(fewest, fewest + 3):
        size = _even(-(-samples // draws))
        part = equal_part(size, rows)
        plan = Plan(part, part * -(-size // part))
        if plan.drawn <= most:
            plans.append((draws * (plan.drawn + most // 16), plan))  # each draw takes time of its own, too
    # With very many draws no equal part fits. What the last draw leaves unused is little then.
    return min(plans, key=lambda entry: entry[0])[1] if plans else Plan(rows, most // rows * rows)


def plan_gradients(inputs: int, n: int, features: int, widest: int, limits: Limits) -> int:
    """Return how many of the n copies of each input go through the network at once for a gradient.

    If all copies of an input fit, whole inputs share a call, because the average over an input's copies is then known
    within it.

    Example:
        >>> plan_gradients(5, 32, features=784, widest=10_000, limits=CPU), plan_gradients(1, 150, 784, 10_000, CPU)
        (96, 75)
    """
    rows = _rows(limits.gradient_values, features, widest, limits.rows)
    if n > rows:
        return equal_part(inputs * n, rows)
    fit = rows // n
    if limits.least:
        # The network is compiled for few numbers of inputs: the most that fit is one of them.
        power = 1 << (fit.bit_length() - 1)
        fit = power * 3 // 2 if 1 < power <= fit * 2 // 3 else power
    return n * min(fit, few_sizes(equal_part(inputs, fit)))


def rows_drawn(samples: int, rows: int, features: int) -> int:
    """Return how many noisy inputs are drawn at once: whole calls of the network.

    Where it takes several draws, it is the largest of a few numbers, or the one that leaves less of the last draw
    unused.

    Example:
        >>> rows_drawn(100, rows=128, features=3072), rows_drawn(4000, 128, 3072)
        (128, 512)
    """
    if samples <= rows:
        return max(1, min(rows, few_sizes(samples)))
    most = max(1, _VALUES_DRAWN // features // rows)
    calls = -(-samples // rows)
    if calls <= most:
        return min(most, few_sizes(calls)) * rows
    sizes = {most - most * part // 16 for part in range(8)}
    return min(sizes, key=lambda size: (max(-samples % (size * rows), samples // 16), -size)) * rows


def few_sizes(count: int) -> int:
    """Return the least 2^k or 3 * 2^k that is not below a count: there are few such sizes to compile for.

    Example:
        >>> [few_sizes(count) for count in (1, 3, 5, 7, 100, 130)]
        [1, 3, 6, 8, 128, 192]
    """
    power = 1 << max(0, count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power


def fill_rows(x: Any, rows: int) -> Any:
    """Return an array of NumPy or JAX with rows of zeros after its own, so that it has `rows` of them.

    Example:
        >>> fill_rows(np.ones((1, 2)), 2)
        array([[1., 1.],
               [0., 0.]])
    """
    if rows <= len(x):
        return x
    join = jnp.concatenate if isinstance(x, jax.Array) else np.concatenate
    return join([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])


def equal_part(total: int, most: int) -> int:
    """Return `ceil(total / ceil(total / most))`: the size of equal parts, as few as fit; at least 1.

    Example:
        >>> equal_part(10, most=6)
        5
    """
    parts = max(1, -(-total // most))
    return max(1, -(-total // parts))


def _rows(values: int, features: int, widest: int, rows: int) -> int:
    """Return how many rows fill the widest layer with `values` values, between the least and the most rows."""
    return min(rows, max(_FEW_ROWS, values // max(features, widest)))


def _even(size: int) -> int:
    """Return the least of 16 sizes between powers of two that is not below this one.

    Example:
        >>> _even(2064), _even(1032), _even(31)
        (2176, 1088, 31)
    """
    unit = 1 << max(0, size.bit_length() - 5)
    return -(-size // unit) * unit
