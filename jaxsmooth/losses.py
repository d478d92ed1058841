"""Training objectives for certified accuracy, in the symbols of their papers.

Each is one pure function `loss(f, noise, key, x, y, ...) -> f32[]`, differentiable in the arrays of f. f is a callable
pytree such as `jax.tree_util.Partial(apply, params)`, `[B, *event] -> [B, K]` logits, or a `jaxsmooth.networks.Network`
of another framework. x are inputs `[N, *event]`, in any floating dtype, y labels `i32[N]`. The key may be of any of
JAX's generators. Defaults are the papers', for CIFAR-10 at sigma 0.5 with pixels in [0, 1].

Each equals its authors' code on the same inputs and noise. All raise ValueError or TypeError for an argument that is
not as described, unless it is traced. A traced label that is no class makes the loss and its gradient NaN.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsmooth import _attacks
from jaxsmooth._attacks import log_mean, log_probabilities, noisy_copies
from jaxsmooth._checks import as_inputs, as_noise, shape_of_scores
from jaxsmooth._labels import along_rows, as_labels, at_labels
from jaxsmooth._sampling import with_noise
from jaxsmooth.arguments import as_integer, as_key, as_nonnegative, in_brief, is_traced, refuse_uncallable
from jaxsmooth.denoising import like_x
from jaxsmooth.networks import FunctionNetwork, Network, as_network
from jaxsmooth.types import Classifier, Noise, RandomClassifier

ClipValues = tuple[Any, Any] | None
"""The least and the greatest value of an input, numbers or arrays that broadcast against one input; None for none."""

PIXELS = (0.0, 1.0)


def gaussian(f: Classifier | Network, noise: Noise, key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy at one noisy copy of each input (Cohen et al. 2019, arXiv:1902.02918, section 3.3).

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
        >>> gaussian(f, Gaussian(1e-6), jax.random.key(0), x, y)
        Array(1.09861..., dtype=float32)
    """
    network, noise, key, x, y = _checked(f, noise, key, x, y)
    return network.value(_cross_entropy, [_noisy(noise, key, x, 1)], y)


def stability(
    f: Classifier | Network, noise: Noise, key: jax.Array, x: jax.Array, y: jax.Array, *, lambda_: float = 2.0
) -> jax.Array:
    """Return the cross-entropy at x + lambda times that of the noisy to the clean prediction (stability training).

    Li et al. 2019, arXiv:1809.03113, in the form of the code that later papers compare with: the second term is
    -sum F(x) log F(x + e), whose target F(x) carries gradient, too. It is KL(F(x) || F(x + e)) plus the entropy of
    F(x). The clean and the noisy batch go through the network one after the other.

    Args:
        f, noise, key, x, y: see the module.
        lambda_: weight of the second term; 0 is training without noise.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0])
        >>> stability(f, Gaussian(1e-6), jax.random.key(0), x, y)  # 3 log 3
        Array(3.29583..., dtype=float32)
    """
    network, noise, key, x, y = _checked(f, noise, key, x, y)
    return network.value(_stability, [x, _noisy(noise, key, x, 1)], y, _weight("lambda_", lambda_))


def _stability(scores: list[jax.Array], y: jax.Array, lambda_: jax.Array) -> jax.Array:
    clean, noisy = (log_probabilities(each, len(y)) for each in scores)
    change = -(jnp.exp(clean) * noisy).sum(axis=-1)
    return (_per_input(clean, y) + lambda_ * change[0]).mean()


def consistency(
    f: Classifier | Network,
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
    network, noise, key, x, y = _checked(f, noise, key, x, y)
    noisy = _noisy(noise, key, x, as_integer("m", m, 1))
    return network.value(_consistency, [noisy], y, _weight("lambda_", lambda_), _weight("eta", eta))


def _consistency(scores: list[jax.Array], y: jax.Array, lambda_: jax.Array, eta: jax.Array) -> jax.Array:
    log_p = log_probabilities(scores[0], len(y))
    mean = log_mean(log_p)
    divergence = _divergence(mean[None], log_p).mean(axis=0)
    entropy = -(jnp.exp(mean) * mean).sum(axis=-1)
    return (_per_input(log_p, y) + lambda_ * divergence + eta * entropy).mean()


def smoothadv(
    f: Classifier | Network,
    noise: Noise,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    m: int = 2,
    epsilon: float = 0.5,
    steps: int = 2,
    attack: str = "pgd",
    clip_values: ClipValues = PIXELS,
) -> jax.Array:
    """Return the cross-entropy at noisy copies of adversarial points of the smoothed classifier (SmoothAdv).

    The points maximise -log of the class probability averaged over the same noise, within an L2 ball of radius epsilon
    and within `clip_values` (Salman et al. 2019, arXiv:1906.04584). "pgd" takes steps of 2 epsilon / steps along the
    normalised gradient. "ddn" (Rony et al. 2019, arXiv:1811.09600) takes steps that shrink from 1 to 0.01 by a cosine
    schedule, scales the perturbation to a norm that starts at epsilon, shrinks by 5 % where the point is adversarial
    and grows by 5 % where it is not, and rounds points to 256 levels of `clip_values`; it keeps the smallest
    adversarial perturbation, none where it finds none, and cuts it to epsilon. The network is in evaluation mode while
    it is attacked, and the points are constants to the gradient.

    The authors' code trains on the first of the m copies unless it is told `--train-multi-noise`, as in their commands.
    Here it is on all.

    Args:
        f, noise, key, x, y: see the module.
        m: noisy copies of each input.
        epsilon: L2 radius of the attack, in the units of x; 0 and m = 1 is `gaussian`.
        steps: of the attack.
        attack: "pgd" or "ddn".
        clip_values: the range of the inputs, by default that of the network, or [0, 1]; None if they have none. A
            traced input outside of it, as in `make_train_step`, makes the loss NaN.

    Raises:
        ValueError: another attack, or an input outside of `clip_values`.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.full((4, 3), 0.5), jnp.array([0, 1, 2, 0])
        >>> key = jax.random.key(0)
        >>> bool(smoothadv(f, Gaussian(1.0), key, x, y) > smoothadv(f, Gaussian(1.0), key, x, y, epsilon=0.0))
        True
    """
    network, noise, key, x, y = _checked(f, noise, key, x, y)
    _refuse_counted(noise)
    m = as_integer("m", m, 1)
    steps = as_integer("steps", steps, 0)
    if attack not in ("pgd", "ddn"):
        raise ValueError(f"attack must be 'pgd' or 'ddn', got {in_brief(attack)}")
    epsilon = _weight("epsilon", epsilon)
    x, bounds = _within_bounds(clip_values, x, network)
    e = _draw(noise, key, x, m)
    find = _attacks.pgd if attack == "pgd" else _attacks.ddn
    # The attack sees the same noise as the loss.
    points = find(network, e, x, y, _Keys.of(key).directions, bounds, epsilon, steps)
    return network.value(_cross_entropy, [noisy_copies(lax.stop_gradient(points), e, x.dtype)], y)


def macer(
    f: Classifier | Network,
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
    other entry, on inputs whose p_y is the largest (arXiv:2001.02378). Where p_y is 1 or p_2 is 0 in float32 the gap is
    beyond every gamma, and the hinge 0. The authors' code adds 1e-10 to the mean probability before its logarithm; here
    it is taken as 1e-20 where it is less.

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
    network, noise, key, x, y = _checked(f, noise, key, x, y)
    noisy = _noisy(noise, key, x, as_integer("m", m, 1))
    if noise.norm != 2:
        raise TypeError(f"noise must be Gaussian for the radius of MACER, got {type(noise).__name__}")
    weights = [_weight(name, value) for name, value in (("lambda_", lambda_), ("beta", beta), ("gamma", gamma))]
    return network.value(_macer, [noisy], y, *weights, jnp.asarray(noise.scale, jnp.float32))


def _macer(
    scores: list[jax.Array], y: jax.Array, lambda_: jax.Array, beta: jax.Array, gamma: jax.Array, sigma: jax.Array
) -> jax.Array:
    logits = scores[0].astype(jnp.float32)
    loss = -at_labels(log_mean(log_probabilities(logits, len(y))), y)
    p = jnp.exp(log_probabilities(beta * logits, len(y))).mean(axis=0)
    others = jnp.where(jnp.arange(p.shape[1])[None] == y[:, None], -1.0, p)
    top = at_labels(p, y)
    second = others.max(axis=1)
    # Only inputs that the mean classifies correctly have a radius to enlarge; of a tie the first class is meant.
    counted = (p.argmax(axis=1) == y) & (top < 1) & (second > 0)
    # `where` inside ndtri, too: otherwise inputs that do not count would have a NaN gradient instead of zero.
    high, low = (jax.scipy.special.ndtri(jnp.where(counted, p, 0.5)) for p in (top, second))
    hinge = jnp.where(counted, jnp.maximum(gamma - (high - low), 0.0), 0.0)
    return (loss + lambda_ * sigma / 2 * hinge).mean()


def smoothmix(
    f: Classifier | Network,
    noise: Noise,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    m: int = 2,
    eta: float = 5.0,
    alpha: float = 1.0,
    steps: int = 4,
    mix_step: int = 0,
    maxnorm_s: float | None = None,
    maxnorm: float | None = None,
    clip_values: ClipValues = PIXELS,
) -> jax.Array:
    """Return cross-entropy + eta KL(target || prediction) at mixtures of clean and adversarial points (SmoothMix).

    x~ takes `steps` steps of length alpha along the normalised gradient of the smoothed loss, within `clip_values` and
    in no ball unless `maxnorm` is given. With lambda uniform on [0, 1/2] for each input, the mixture
    (1 - lambda) x + lambda x~ gets the target (1 - lambda) F(x) + lambda / K, F being the mean prediction at noisy
    copies of x. Only inputs that F classifies correctly count (Jeong et al. 2021, arXiv:2111.09277). The network is in
    evaluation mode while it is attacked, and the points are constants to the gradient. As in the authors' code, the
    targets carry gradient, and noisy copies of x and of the mixtures go through the network one after the other. The
    paper writes the cross-entropy of the mixtures: it is this divergence plus the entropy of the target.

    Args:
        f, noise, key, x, y: see the module.
        m: noisy copies of each input.
        eta: weight of the mixtures; 0 and m = 1 is `gaussian`.
        alpha: length of a step, in the units of x.
        steps: of the attack.
        mix_step: x in the formulas is the point before this step of the attack, and not the input, if it is more
            than 0: the paper's "one-step adversary" is 1.
        maxnorm_s: L2 distance that such a point keeps to the input at most; alpha * mix_step by default.
        maxnorm: L2 distance that x~ keeps to the input at most; None for any.
        clip_values: the range of the inputs, by default that of the network, or [0, 1]; None if they have none. A
            traced input outside of it, as in `make_train_step`, makes the loss NaN.

    Raises:
        ValueError: an input outside of `clip_values`.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f, x, y = (lambda x: x), jnp.full((4, 3), 0.5), jnp.array([0, 1, 2, 0])
        >>> smoothmix(f, Gaussian(1.0), jax.random.key(0), x, y).shape
        ()
    """
    network, noise, key, x, y = _checked(f, noise, key, x, y)
    _refuse_counted(noise)
    m = as_integer("m", m, 1)
    steps = as_integer("steps", steps, 0)
    mix_step = as_integer("mix_step", mix_step, 0)
    if mix_step >= max(steps, 1):
        raise ValueError(f"mix_step must be less than the number of steps, {steps}, got {mix_step}")
    alpha = _weight("alpha", alpha)
    eta = _weight("eta", eta)
    largest = alpha * mix_step if maxnorm_s is None else _weight("maxnorm_s", maxnorm_s)
    maxnorm = None if maxnorm is None else _weight("maxnorm", maxnorm)
    x, bounds = _within_bounds(clip_values, x, network)
    e = _draw(noise, key, x, m)
    clean, adversarial = _attacks.smoothmix(network, e, x, y, bounds, alpha, steps, mix_step, largest, maxnorm)
    mixing = jax.random.uniform(_Keys.of(key).mixing, (len(x),), jnp.float32, maxval=0.5)
    clean, mixture = _mix(clean, adversarial, mixing)
    batches = [noisy_copies(point, e, x.dtype) for point in (clean, mixture)]
    return network.value(_smoothmix, batches, y, mixing, eta)


def denoising(f: Callable[..., jax.Array], noise: Noise, key: jax.Array, x: jax.Array, y: Any = None) -> jax.Array:
    """Return the mean squared error of a denoiser at one noisy copy of each input: the mean of (f(x + e) - x)^2.

    Salman et al. 2020, arXiv:2003.01908, section 3.1.1 ("MSE"). `jaxsmooth.denoised` puts the denoiser before a
    classifier.

    Args:
        f: a denoiser, from noisy inputs `[N, *event]` to clean ones: a callable pytree, as for the other objectives.
        noise, key, x: see the module.
        y: not used; `make_train_step` gives labels.

    Raises:
        ValueError: at a call, the denoiser returns another shape.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> round(float(denoising(lambda x: x, Gaussian(0.5), jax.random.key(0), jnp.zeros((100, 100)))), 1)
        0.3
    """
    del y
    network, noise, key, x = _checked_denoiser(f, noise, key, x)
    return network.value(_squared_error, [_noisy(noise, key, x, 1)], x)


def _squared_error(clean: list[jax.Array], x: jax.Array) -> jax.Array:
    difference = like_x(clean[0], x).astype(jnp.float32) - x.astype(jnp.float32)
    return (difference**2).mean()


def denoising_stability(
    f: Callable[..., jax.Array],
    noise: Noise,
    key: jax.Array,
    x: jax.Array,
    y: Any = None,
    *,
    classifier: Classifier,
) -> jax.Array:
    """Return the cross-entropy of a classifier behind a denoiser at noisy inputs, for its own class at the clean ones.

    The mean of -log F(f(x + e))_c with c = argmax F(x), F being the softmax of the classifier, which is not trained
    (Salman et al. 2020, arXiv:2003.01908, section 3.1.2 ("Stab")). The authors first train by `denoising`, then by
    this.

    Args:
        f: a denoiser, as for `denoising`.
        noise, key, x: see the module.
        y: not used; `make_train_step` gives labels.
        classifier: scores `[N, K]` of clean inputs, such as `bridges.pytorch.as_jax(network)`.

    Raises:
        ValueError: at a call, the denoiser returns another shape.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> classifier = lambda x: jnp.stack([x[:, 0], -x[:, 0]], axis=1)
        >>> value = denoising_stability(
        ...     lambda x: x, Gaussian(0.1), jax.random.key(0), jnp.ones((100, 2)), classifier=classifier
        ... )
        >>> round(float(value), 1)  # log(1 + exp(-2))
        0.1
    """
    del y
    refuse_uncallable(classifier)
    network, noise, key, x = _checked_denoiser(f, noise, key, x)
    scores = classifier(x)
    if len(shape_of_scores(scores, len(x))) > 1:
        raise ValueError(f"classifier must return scores [N, K], got shape {scores.shape}")
    labels = lax.stop_gradient(scores).argmax(axis=-1)

    def formula(clean: list[jax.Array], x: jax.Array, labels: jax.Array) -> jax.Array:
        scores = classifier(like_x(clean[0], x))
        shape_of_scores(scores, len(labels))
        return _per_input(log_probabilities(scores, len(labels)), labels).mean()

    return network.value(formula, [_noisy(noise, key, x, 1)], x, labels)


def _checked_denoiser(f: Any, noise: Any, key: Any, x: Any) -> tuple[Network, Noise, jax.Array, jax.Array]:
    """Return what trains a denoiser, once it was found to be as described."""
    if isinstance(f, Network) and not isinstance(f, FunctionNetwork):
        raise TypeError(
            "f must be a JAX function for an objective that trains a denoiser: train one of another framework in a "
            "loop of its own, as examples/denoise_mnist.py does"
        )
    return _checked_network(f, noise, key, x)


@jax.jit
def _mix(clean: jax.Array, adversarial: jax.Array, mixing: jax.Array) -> tuple[jax.Array, jax.Array]:
    mixture = clean + along_rows(mixing, clean) * (adversarial - clean)
    return lax.stop_gradient(clean), lax.stop_gradient(mixture)


def _smoothmix(scores: list[jax.Array], y: jax.Array, mixing: jax.Array, eta: jax.Array) -> jax.Array:
    clean, mixed = (log_probabilities(each, len(y)) for each in scores)
    mean = jnp.exp(clean).mean(axis=0)
    target = (1 - mixing)[:, None] * mean + mixing[:, None] / mean.shape[1]
    # 0 log 0 is 0, with gradient 0.
    positive = target > 0
    log_target = jnp.log(jnp.where(positive, target, 1.0))
    divergence = jnp.where(positive[None], target[None] * (log_target[None] - mixed), 0.0).sum(axis=-1).mean(axis=0)
    is_correct = mean.argmax(axis=-1) == y
    return (_per_input(clean, y) + eta * jnp.where(is_correct, divergence, 0.0)).mean()


class _Keys(NamedTuple):
    """The keys of what is drawn beside the noise, which the key itself draws."""

    mixing: jax.Array
    directions: jax.Array

    @classmethod
    def of(cls, key: jax.Array) -> "_Keys":
        return cls(jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))


def _checked(f: Any, noise: Any, key: Any, x: Any, y: Any) -> tuple[Network, Noise, jax.Array, jax.Array, jax.Array]:
    """Return the arguments of an objective, once they were found to be as described."""
    network, noise, key, x = _checked_network(f, noise, key, x)
    return network, noise, key, x, as_labels(y, len(x), network.classes(x))


def _checked_network(f: Any, noise: Any, key: Any, x: Any) -> tuple[Network, Noise, jax.Array, jax.Array]:
    """Return all but the labels."""
    if isinstance(f, RandomClassifier):
        raise TypeError("f must be a function of the inputs for a training objective, got a RandomClassifier")
    if not isinstance(f, Network):
        refuse_uncallable(f)
    noise = as_noise(noise)
    key = as_key(key, any_generator=True)
    x = as_inputs(x, noise)
    if len(x) == 0:
        raise ValueError("x must have at least one input, got none")
    return as_network(f), noise, key, x


def _refuse_counted(noise: Noise) -> None:
    """Refuse a noise that is not added to the inputs: the attack takes the gradient at x + e."""
    if hasattr(noise, "add") and noise.norm != 2:  # that of a lattice is a sum
        raise TypeError(f"noise must be one that is added to the inputs, for an L2 attack, got {in_brief(noise)}")


def _weight(name: str, value: Any) -> Any:
    """Return a hyperparameter, which is a number >= 0 unless it is traced."""
    if is_traced(value):
        if value.shape != ():
            raise ValueError(f"{name} must be a number, got an array of shape {value.shape}")
        return value
    is_scalar = isinstance(value, (jax.Array, np.ndarray)) and value.shape == ()
    return as_nonnegative(name, value.item() if is_scalar else value)


def _within_bounds(clip_values: Any, x: jax.Array, network: Network) -> tuple[jax.Array, tuple[Any, Any] | None]:
    """Return the inputs, and their range as float32 arrays that broadcast against a batch.

    Inputs out of range are refused. Traced ones become NaN, and the loss with them.
    """
    if clip_values is PIXELS and network.clip_values is not None:
        clip_values = network.clip_values
    if clip_values is None:
        return x, None
    expected = "clip_values must be (least, greatest) of an input, finite numbers or arrays like one, or None"
    try:
        low, high = (np.asarray(value, np.float32) for value in clip_values)
        fits = np.broadcast_shapes(low.shape, high.shape, x.shape[1:]) == x.shape[1:]
    except (TypeError, ValueError, jax.errors.TracerArrayConversionError):
        raise ValueError(f"{expected}, got {in_brief(clip_values)}") from None
    if not fits or not (low < high).all() or not (np.isfinite(low) & np.isfinite(high)).all():
        raise ValueError(f"{expected}, got {in_brief(clip_values)} for inputs of shape {x.shape[1:]}")
    bounds = _with_rank(low, x.ndim), _with_rank(high, x.ndim)
    if is_traced(x):
        inside = (x.astype(jnp.float32) >= bounds[0]) & (x.astype(jnp.float32) <= bounds[1])
        return jnp.where(inside, x, jnp.nan), bounds
    values = np.asarray(x, np.float32)
    if (values < low[None]).any() or (values > high[None]).any():
        raise ValueError(
            f"x must lie within clip_values, from {low.min():g} to {high.max():g}, got values from {values.min():g} to "
            f"{values.max():g}: give the range of the inputs as clip_values, or None if they have none"
        )
    return x, bounds


def _with_rank(value: np.ndarray, rank: int) -> jax.Array:
    return jnp.asarray(value.reshape((1,) * (rank - value.ndim) + value.shape))


@functools.partial(jax.jit, static_argnums=3)
def _draw(noise: Noise, key: jax.Array, x: jax.Array, m: int) -> jax.Array:
    """Return noise for m copies of each input, `f32[m, N, *event]`; `i32` for integers."""
    dtype = jnp.int32 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.float32
    return noise.sample(key, (m, *x.shape), dtype)


@functools.partial(jax.jit, static_argnums=3)
def _noisy(noise: Noise, key: jax.Array, x: jax.Array, m: int) -> jax.Array:
    """Return m noisy copies of each input, `[m N, *event]`: drawn and added in one program."""
    drawn = _draw(noise, key, x, m)
    if not hasattr(noise, "add"):
        return noisy_copies(x, drawn, x.dtype)
    copies = jnp.broadcast_to(x[None], drawn.shape).reshape(-1, *x.shape[1:])
    return with_noise(noise, copies, drawn.reshape(copies.shape))


def _cross_entropy(scores: list[jax.Array], y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of all copies."""
    return _per_input(log_probabilities(scores[0], len(y)), y).mean()


def _per_input(log_p: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy of each input, `[m, N, K] -> [N]`."""
    chex.assert_rank([log_p, y], [3, 1])
    chex.assert_equal(log_p.shape[1], len(y))
    return -jax.vmap(at_labels, (0, None))(log_p, y).mean(axis=0)


def _divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)  # KL(p || q)
