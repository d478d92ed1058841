"""Mean votes of the tests of `jaxsmooth.plans`, exactly: `python -m tests.benchmarks.sequential_votes`.

For each radius and true probability, beside the floor that no sequential test with these error probabilities can beat,
d(1 - beta, alpha) / KL(p || q), and beside a fixed number. alpha = beta = 0.001, at most 100,000 votes. Then the share
of computed rows that `certify_radii` uses on 500 inputs of all difficulties, in batches of 256.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from jaxsmooth import Gaussian, certify_radii
from jaxsmooth.plans import expected_votes, make_looks, plan_radii

N, ALPHA = 100_000, 1e-3
UNITS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
PROBABILITIES = (0.55, 0.7, 0.9, 0.99, 0.999, 1.0)


class Row(NamedTuple):
    """One cell: radius over sigma, true probability, mean votes, floor."""

    unit: float
    p: float
    votes: float
    floor: float

    @property
    def ratio(self) -> float:
        """Mean votes over the floor."""
        return self.votes / self.floor

    @property
    def counts(self) -> bool:
        """Whether the floor lies between the first look and the last."""
        return 64 <= self.floor <= N


def divergence(p: float, q: float) -> float:
    """Return the relative entropy of two coins."""
    return float(special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q))


def table(looks: tuple[int, ...] | None = None) -> list[Row]:
    """Return all cells."""
    rows = []
    for unit in UNITS:
        plan = plan_radii([unit], Gaussian(1.0), n=N, alpha=ALPHA, beta=ALPHA, looks=looks)
        for p in PROBABILITIES:
            floor = divergence(1 - ALPHA, ALPHA) / divergence(p, stats.norm.cdf(unit))
            rows.append(Row(unit, p, expected_votes(plan, 0, p)[0], floor))
    return rows


def used_rows() -> float:
    """Return the share of the rows that a classifier was called with which were votes."""
    rows = 0

    def classifier(x: jax.Array) -> jax.Array:
        nonlocal rows
        rows += len(x)
        return jnp.stack([x[:, 0], -x[:, 0]], axis=1)

    x = np.zeros((500, 4), np.float32)
    x[:, 0] = np.random.default_rng(0).normal(size=500)
    radii, n0 = [0.0, 0.25, 0.5, 0.75], 100
    result = certify_radii(classifier, Gaussian(0.5), jax.random.key(0), x, radii, n0=n0, compiled=False)
    return (int(result.votes.n.sum()) + 500 * n0) / rows


def measure() -> dict[str, object]:
    """Print and return the tables and the share."""
    found: dict[str, object] = {}
    for name, looks in (("34 looks", None), ("looks from 16 growing by 1.05", make_looks(N, 16, 1.05))):
        rows = table(looks)
        print(f"{name}\n{'radius / sigma':>14}  {'p':>5}  {'votes':>7}  {'floor':>7}  votes/floor  {N:,}/votes")
        for row in rows:
            ratio = f"{row.ratio:11.2f}" if row.counts else " " * 11
            print(f"{row.unit:14}  {row.p:5}  {row.votes:7.0f}  {row.floor:7.0f}  {ratio}  {N / row.votes:9.0f}")
        ratios = np.array([row.ratio for row in rows if row.counts])
        print(f"worst {ratios.max():.2f}, geometric mean {math.exp(np.log(ratios).mean()):.2f}\n")
        found[name] = [row._asdict() for row in rows]
    found["rows used"] = used_rows()
    print(f"rows used {found['rows used']:.1%}")
    return found


if __name__ == "__main__":
    measure()
