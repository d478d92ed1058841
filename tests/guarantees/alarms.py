"""What the guarantee tests share: half spaces at a known distance, and an alarm of known false-alarm rate."""

import jax.numpy as jnp
from scipy import stats

FALSE_ALARM = 1e-6
ALPHA = 0.05
SCALE = 0.5


def trials(number, margin):
    """Inputs at this distance from the boundary of `half_space`, which is their true radius in every norm."""
    return jnp.zeros((number, 2)).at[:, 0].set(margin)


def raises_alarm(false, number, rate):
    """Tell whether this many false certificates of a number are too many for the rate."""
    return int(false) > stats.binom.isf(FALSE_ALARM, number, rate)
