"""Training objectives for certified accuracy, in the symbols of their papers.

Each is one pure function `loss(f, noise, key, x, y, ...) -> f32[]`, differentiable in the arrays of f. f is a callable
pytree such as `jax.tree_util.Partial(apply, params)`, `[B, *event] -> [B, K]` logits. x are inputs `[N, *event]`, y
labels `i32[N]`. Defaults are the papers', for CIFAR-10 at sigma 0.5 with pixels in [0, 1]. All raise ValueError or
TypeError for an argument that is not as described, unless it is traced.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxsmooth._checks import as_inputs, as_noise, shape_of_scores
from jaxsmooth._labels import LEAST_PROBABILITY, along_rows, as_labels, at_labels
from jaxsmooth._sampling import shaped_scores
from jaxsmooth.arguments import as_integer, as_key, refuse_uncallable
from jaxsmooth.types import Classifier, Noise, RandomClassifier


def _checked(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return an objective that checks its arguments first."""

    @wraps(loss)
    def checked(f: Classifier, noise: Noise, key: jax.Array, x: Any, y: Any, **settings: Any) -> jax.Array:
        refuse_uncallable(f)
        noise = as_noise(noise)
        key = as_key(key)
        x = as_inputs(x)
        if len(x) == 0:
            raise ValueError("x must have at least one input, got none")
        if isinstance(f, RandomClassifier):
            raise TypeError("f must be a function of the inputs for a training objective, got a RandomClassifier")
        labels = as_labels(y, len(x), shape_of_scores(shaped_scores(f, x), len(x))[-1])
        counts = {"m": 1, "steps": 0}
        settings |= {k: as_integer(k, v, counts[k]) for k, v in settings.items() if k in counts}
        return loss(f, noise, key, x, labels, **settings)

    return checked


@_checked
def gaussian(f: Classifier, noise: Noise, key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy at one noisy copy of each input (Cohen et al. 2019, arXiv:1902.02918, section 3.3).

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
        >>> gaussian(f, Gaussian(1e-6), jax.random.key(0), x, y)
        Array(1.09861..., dtype=float32)
    """
    return _cross_entropy(_log_probabilities(f, _noisy(noise, key, x, 1)), y).mean()


@_checked
def stability(
    f: Classifier, noise: Noise, key: jax.Array, x: jax.Array, y: jax.Array, *, lambda_: float = 2.0
) -> jax.Array:
    """Return `gaussian` + lambda KL(clean || noisy prediction) (Li et al. 2019, arXiv:1809.03113).

    Args:
        f, noise, key, x, y: see the module.
        lambda_: weight of the divergence; 0 is `gaussian`.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
        >>> noise, key = Gaussian(1.0), jax.random.key(0)
        >>> bool(stability(f, noise, key, x, y) > gaussian(f, noise, key, x, y))
        True
    """
    noisy = _log_probabilities(f, _noisy(noise, key, x, 1))
    clean = jax.nn.log_softmax(f(x))
    return (_cross_entropy(noisy, y) + lambda_ * _divergence(clean, noisy[0])).mean()


@_checked
def consistency(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    m: int = 2,
    lambda_: float = 10.0,
    eta: float = 0.5,
) -> jax.Array:
    """Return cross-entropy + lambda mean KL(mean || each) + eta entropy of the mean (Consistency).

    Jeong & Shin 2020, arXiv:2006.04062; the entropy keeps the mean confident.

    Args:
        f, noise, key, x, y: see the module.
        m: noisy copies of each input.
        lambda_: weight of the divergence of the predictions from their mean.
        eta: weight of the entropy of the mean; m = 1 and eta = 0 is `gaussian`.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
        >>> consistency(f, Gaussian(1.0), jax.random.key(0), x, y).shape
        ()
    """
    log_p = _log_probabilities(f, _noisy(noise, key, x, m))
    mean = _log_mean(log_p)
    entropy = -(jnp.exp(mean) * mean).sum(axis=-1)
    return (_cross_entropy(log_p, y) + lambda_ * _divergence(mean[None], log_p).mean(axis=0) + eta * entropy).mean()


@_checked
def smoothadv(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    m: int = 2,
    epsilon: float = 0.5,
    steps: int = 2,
    attack: str = "pgd",
) -> jax.Array:
    """Return the cross-entropy at noisy copies of adversarial points of the smoothed classifier (SmoothAdv).

    The points maximise -log of the class probability averaged over the same noise, within an L2 ball of radius epsilon
    (Salman et al. 2019, arXiv:1906.04584). "pgd" takes steps of 2 epsilon / steps along the normalised gradient;
    "ddn" decouples direction and norm (Rony et al. 2019, arXiv:1811.09600): the norm starts at epsilon, and shrinks by
    5 % where the point is adversarial, grows by 5 % where it is not, up to epsilon. The points are constants to the
    gradient.

    Args:
        f, noise, key, x, y: see the module.
        m: noisy copies of each input.
        epsilon: L2 radius of the attack, in the units of x; 0 and m = 1 is `gaussian`.
        steps: of the attack.
        attack: "pgd" or "ddn".

    Raises:
        ValueError: another attack.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
        >>> key = jax.random.key(0)
        >>> bool(smoothadv(f, Gaussian(1.0), key, x, y) > smoothadv(f, Gaussian(1.0), key, x, y, epsilon=0.0))
        True
    """
    if attack not in ("pgd", "ddn"):
        raise ValueError(f"attack must be 'pgd' or 'ddn', got {attack!r}")
    e = noise.sample(key, (m, *x.shape), jnp.float32)
    bound = jnp.float32(epsilon)
    norm = jnp.full(len(x), epsilon, jnp.float32)
    step = 2 * bound / max(steps, 1)
    delta = jnp.zeros(x.shape, jnp.float32)
    # The attack sees the same noise draws as the loss below.
    for _ in range(steps):
        gradient, p = _ascent(f, e, x + delta, y)
        delta = delta + step * _unit(gradient)
        if attack == "ddn":
            norm = jnp.minimum(norm * jnp.where(p.argmax(axis=-1) != y, 0.95, 1.05), bound)
            delta = along_rows(norm, delta) * _unit(delta)
        # Back into the ball.
        length = _length(delta)
        delta = delta * along_rows(jnp.minimum(1.0, bound / jnp.where(length > 0, length, 1.0)), delta)
    return _cross_entropy(_log_probabilities(f, lax.stop_gradient(x + delta)[None] + e), y).mean()


@_checked
def macer(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    m: int = 16,
    lambda_: float = 12.0,
    beta: float = 16.0,
    gamma: float = 8.0,
) -> jax.Array:
    """Return cross-entropy of the mean + lambda sigma/2 hinge on the soft certified radius (MACER, Zhai et al. 2020).

    The hinge is max(0, gamma - (Phi^-1(p_y) - Phi^-1(p_2))) with p the mean of softmax(beta f) and p_2 its largest
    other entry, on inputs whose p_y is the largest (arXiv:2001.02378). Where p_y is 1 or p_2 is 0 in
    float32 the gap is beyond every gamma, and the hinge 0.

    Args:
        f, noise, key, x, y: see the module. The noise is Gaussian.
        m: noisy copies of each input.
        lambda_: weight of the hinge; 0 and m = 1 is `gaussian`.
        beta: inverse temperature.
        gamma: gap, in units of sigma / 2, beyond which nothing is gained.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
        >>> macer(f, Gaussian(1.0), jax.random.key(0), x, y).shape
        ()
    """
    scores = _scores(f, _noisy(noise, key, x, m))
    loss = -at_labels(_log_mean(jax.nn.log_softmax(scores)), y)
    p = jax.nn.softmax(beta * scores).mean(axis=0)
    others = jnp.where(jnp.arange(p.shape[1])[None] == y[:, None], -1.0, p)
    top = at_labels(p, y)
    second = others.max(axis=1)
    # Only inputs that the mean classifies correctly have a radius to enlarge.
    counted = (top > second) & (top < 1) & (second > 0)
    # `where` inside ndtri, too: otherwise inputs that do not count would have a NaN gradient instead of zero.
    high, low = (jax.scipy.special.ndtri(jnp.where(counted, p, 0.5)) for p in (top, second))
    hinge = jnp.where(counted, jnp.maximum(gamma - (high - low), 0.0), 0.0)
    return (loss + lambda_ * jnp.asarray(noise.scale, jnp.float32) / 2 * hinge).mean()


@_checked
def smoothmix(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    m: int = 2,
    eta: float = 5.0,
    alpha: float = 1.0,
    steps: int = 4,
) -> jax.Array:
    """Return cross-entropy + eta cross-entropy at mixtures of clean and adversarial points (SmoothMix).

    x~ takes `steps` steps of length alpha along the gradient of the smoothed loss, in no ball. With lambda uniform on
    [0, 1/2] for each input, the mixture (1 - lambda) x + lambda x~ gets the target (1 - lambda) F(x) + lambda / K, F
    being the mean prediction at noisy copies of x (Jeong et al. 2021, arXiv:2111.09277). Points and targets are
    constants to the gradient.

    Args:
        f, noise, key, x, y: see the module.
        m: noisy copies of each input.
        eta: weight of the mixtures; 0 and m = 1 is `gaussian`.
        alpha: length of a step, in the units of x.
        steps: of the attack.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
        >>> smoothmix(f, Gaussian(1.0), jax.random.key(0), x, y).shape
        ()
    """
    e = noise.sample(key, (m, *x.shape), jnp.float32)
    log_p = _log_probabilities(f, x[None] + e)
    adversarial = x
    for _ in range(steps):
        adversarial = adversarial + alpha * _unit(_ascent(f, e, adversarial, y)[0])
    # The key itself draws the noise, so the mixing weights need one of their own.
    mixing = jax.random.uniform(jax.random.fold_in(key, 1), (len(x),), jnp.float32, maxval=0.5)
    mixture = x + along_rows(mixing, x) * (lax.stop_gradient(adversarial) - x)
    soft = lax.stop_gradient(jnp.exp(_log_mean(log_p)))
    target = (1 - mixing)[:, None] * soft + mixing[:, None] / soft.shape[1]
    mixed = -(target[None] * _log_probabilities(f, mixture[None] + e)).sum(axis=-1).mean(axis=0)
    return (_cross_entropy(log_p, y) + eta * mixed).mean()


def _noisy(noise: Noise, key: jax.Array, x: jax.Array, m: int) -> jax.Array:
    return x[None] + noise.sample(key, (m, *x.shape), jnp.float32)  # [m, N, *event]


def _scores(f: Classifier, noisy: jax.Array) -> jax.Array:
    """Return the scores `f32[m, N, K]` of `[m, N, *event]`, in one call of f."""
    scores = f(noisy.reshape(-1, *noisy.shape[2:]))
    chex.assert_shape(scores, (noisy.shape[0] * noisy.shape[1], None))
    return scores.astype(jnp.float32).reshape(*noisy.shape[:2], -1)


def _log_probabilities(f: Classifier, noisy: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(_scores(f, noisy))


def _cross_entropy(log_p: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy of each input, `[m, N, K] -> [N]`."""
    chex.assert_rank([log_p, y], [3, 1])
    chex.assert_equal(log_p.shape[1], len(y))
    return -jax.vmap(at_labels, (0, None))(log_p, y).mean(axis=0)


def _log_mean(log_p: jax.Array) -> jax.Array:
    """Return the log of the mean probabilities, at least 1e-20, `[m, N, K] -> [N, K]`."""
    chex.assert_rank(log_p, 3)
    mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(len(log_p))
    return jnp.maximum(mean, jnp.log(LEAST_PROBABILITY))


def _divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)  # KL(p || q)


def _ascent(f: Classifier, e: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the gradient in x of -log of the averaged probability of y, and the averaged probabilities."""

    def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = _log_mean(_log_probabilities(f, x[None] + e))
        return -at_labels(mean, y).sum(), jnp.exp(mean)

    gradient, p = jax.grad(loss, has_aux=True)(x)
    return lax.stop_gradient(gradient), lax.stop_gradient(p)


def _length(x: jax.Array) -> jax.Array:
    return jnp.sqrt((x**2).reshape(len(x), -1).sum(axis=1))  # the L2 norm of each input


def _unit(x: jax.Array) -> jax.Array:
    """Return each input divided by its L2 norm, zero where that is zero."""
    length = _length(x)
    return x / along_rows(jnp.where(length > 0, length, 1.0), x)
