"""The smoothed classifier as a differentiable function: class probabilities averaged over noisy copies."""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsmooth._checks import (
    StaticCallable,
    as_batch_size,
    as_first,
    as_inputs,
    as_n,
    merge_callable,
    shape_of_scores,
    split_callable,
)
from jaxsmooth._convolutions import canonical_convolutions
from jaxsmooth._labels import LEAST_PROBABILITY, along_rows, as_labels, at_labels
from jaxsmooth._sampling import (
    Position,
    Task,
    add_noise,
    as_task,
    draw,
    draw_noise,
    row_of_scores,
    rows_of_chunks,
    scan_chunks,
    traced_scores,
)
from jaxsmooth.arguments import as_flag, refuse_uncallable, refuse_unknown
from jaxsmooth.noise import Gaussian
from jaxsmooth.types import Classifier, Noise

__all__ = ["class_gradients", "cross_entropy", "smooth"]


def smooth(
    f: Classifier,
    noise: Noise,
    *,
    n: int,
    batch_size: int = 256,
    estimator: Literal["pathwise", "score"] = "pathwise",
    hard: bool = False,
    ids: ArrayLike | None = None,
    first: int | jax.Array = 0,
) -> Callable[[jax.Array, ArrayLike], jax.Array]:
    """Return the smoothed classifier g(key, x) -> f32[N, K], class probabilities averaged over `n` noisy copies of x.

    With one Threefry key and inputs `[N, *event]`, entry (i, c) is the mean over s of softmax(f(x_i + e_is))_c, or with
    `hard` the share of votes for c, over exactly the samples that `count_votes` votes on with the same arguments. It is
    an unbiased estimate of E[softmax(f(x_i + e))_c]. A sample with a non-finite score adds to no class.

    g is differentiable in reverse mode, by `jax.grad`, `jax.vjp` and `jax.jacrev`, under `jit` and `vmap`. JAX refuses
    it in forward mode (`jax.jvp`, `jax.jacfwd`), with a TypeError that names the custom_vjp function. `jax.hessian`
    works with "pathwise". Both estimators of the gradient are unbiased for that of the expectation:

    - "pathwise" differentiates through f (Salman et al. 2019, arXiv:1906.04584), in x, in the arrays of f and in the
      scale of the noise. The backward pass computes each chunk again, so that memory does not grow with n.
    - "score" needs no gradient of f, and serves hard votes, too: the mean of (h - b) z / sigma, where h are a sample's
      probabilities, z its noise in units of sigma, and b the mean of h over the other samples of the input. It takes
      Gaussian noise and gives gradients in x only. Its variance grows with the number of features: in the example below
      it is over 30 times the other's.

    Args:
        f: base classifier, `[B, *event] -> [B, K]` logits or log-probabilities.
        noise, batch_size, ids, first: as for `count_votes`.
        n: number of samples for each input, static, at least 1; at least 2 for "score".
        estimator: of the gradient.
        hard: average votes instead of probabilities; needs "score".

    Raises:
        ValueError, TypeError: as `count_votes`, or estimator, noise and `hard` do not go together. NotImplementedError:
            second derivatives with "score", and gradients in anything but x.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x.sum(-1), -x.sum(-1)], -1) / 4
        >>> x, keys = jnp.full((1, 30), 0.02), jax.random.split(jax.random.key(0), 50)
        >>> def variance(estimator):
        ...     g = smooth(f, Gaussian(0.5), n=100, estimator=estimator)
        ...     gradients = jax.lax.map(lambda key: jax.grad(lambda x: g(key, x)[0, 0])(x), keys)
        ...     return gradients.var(axis=0).mean()
        >>> bool(variance("score") > 30 * variance("pathwise"))
        True
    """
    hard = as_flag("hard", hard)
    n = _as_n(f, noise, n, estimator, hard)
    arrays, static = split_callable(f)

    def g(key: jax.Array, x: ArrayLike) -> jax.Array:
        task = as_task(noise, key, x, ids, as_first(first, n))
        rows = rows_of_chunks(task.x.shape[0] * n, as_batch_size(batch_size))
        if task.x.shape[0] == 0:
            return jnp.zeros((0, *row_of_scores(f, task, rows)), jnp.float32)
        if estimator == "pathwise":
            return _pathwise(static, n, rows, hard, arrays, task)
        fixed = jax.tree.map(_in_x_only, (arrays, task.noise))
        return _score(static, n, rows, hard, fixed[0], task._replace(noise=fixed[1]))

    return g


def cross_entropy(probabilities: jax.Array, y: ArrayLike) -> jax.Array:
    """Return -log of the probability of each label, `f32[N]`, the probability taken as 1e-20 where it is less.

    The loss that SmoothAdv attacks maximise and train on (Salman et al. 2019, arXiv:1906.04584).

    Args:
        probabilities: `[N, K]`, as g of `smooth` returns them.
        y: labels, `N` integers in [0, K). A traced label out of range gives NaN.

    Raises:
        TypeError: y holds no integers. ValueError: wrong shape, or a label out of range.

    Example:
        >>> cross_entropy(jnp.array([[0.5, 0.5], [0.0, 1.0]]), jnp.array([0, 0]))
        Array([ 0.6931472, 46.0517   ], dtype=float32)
    """
    labels = as_labels(y, *probabilities.shape)
    # Below the least probability the gradient is 0, where it would be infinite.
    return -jnp.log(jnp.maximum(at_labels(probabilities, labels), LEAST_PROBABILITY))


def class_gradients(
    g: Callable[[jax.Array, ArrayLike], jax.Array], key: jax.Array, x: ArrayLike, label: ArrayLike | None = None
) -> jax.Array:
    """Return the gradients in x of the class probabilities of a smoothed classifier.

    Args:
        g: as `smooth` returns it.
        key: one Threefry key.
        x: inputs `[N, *event]`.
        label: one class for each input; all classes by default.

    Returns:
        `[N, K, *event]`, or `[N, 1, *event]` where labels are given.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> g = smooth(lambda x: x, Gaussian(0.5), n=100)
        >>> class_gradients(g, jax.random.key(0), jnp.zeros((4, 3))).shape
        (4, 3, 3)
    """
    # One forward pass serves the gradients of all classes.
    probabilities, pullback = jax.vjp(lambda x: g(key, x), as_inputs(x))
    number, classes = probabilities.shape
    if label is None:
        chosen = jnp.broadcast_to(jnp.eye(classes)[:, None], (classes, number, classes))
    else:
        chosen = jax.nn.one_hot(as_labels(label, number, classes), classes)[None]
    (gradients,) = jax.vmap(pullback)(chosen.astype(probabilities.dtype))
    return jnp.moveaxis(gradients, 0, 1)


def _as_n(f: Any, noise: Any, n: Any, estimator: str, hard: bool) -> int:
    """Return n, after a check that the estimator is one for this classifier and noise."""
    refuse_uncallable(f)
    refuse_unknown("estimator", estimator, ("pathwise", "score"))
    n = as_n(n, 2 if estimator == "score" else 1)
    if hard and estimator == "pathwise":
        raise ValueError("hard votes have no gradient to follow: hard=True needs estimator='score'")
    if estimator == "score" and not isinstance(noise, Gaussian):
        raise TypeError(f"estimator='score' is for Gaussian noise, got {type(noise).__name__}")
    return n


def _average(static: StaticCallable, n: int, rows: int, hard: bool, arrays: list[Any], task: Task) -> jax.Array:
    """Return the averaged probabilities or votes, computed chunk by chunk."""

    def add_chunk(total: jax.Array | None, position: Position) -> jax.Array:
        noisy, keys, pairs = draw(task, position, (n,), rows)
        h = _probabilities(merge_callable(arrays, static), noisy, keys, hard)
        total = jnp.zeros((task.x.shape[0], *h.shape[1:]), jnp.float32) if total is None else total
        return total.at[pairs.row].add(h / n, mode="drop")

    return scan_chunks(add_chunk, task.x.shape[0], n, rows)


def _forward(
    static: StaticCallable, n: int, rows: int, hard: bool, arrays: list[Any], task: Task
) -> tuple[jax.Array, tuple[list[Any], Task, jax.Array]]:
    average = _average(static, n, rows, hard, arrays, task)
    return average, (arrays, task, average)


def _pathwise_backward(
    static: StaticCallable,
    n: int,
    rows: int,
    hard: bool,
    residuals: tuple[list[Any], Task, jax.Array],
    weights: jax.Array,
) -> tuple[list[Any], Task]:
    """Return the gradient of <weights, average> in every floating-point array of f and of the task."""
    # Everything that can have a gradient: the arrays of f, x, and the scale of the noise.
    leaves, treedef = jax.tree.flatten(residuals[:2])
    places = [place for place, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def weighted(parameters: list[jax.Array], position: Position) -> jax.Array:
        # The chunk is drawn again from the key, so that no noisy copy is kept between the passes.
        replaced = dict(zip(places, parameters, strict=True))
        arrays, task = treedef.unflatten([replaced.get(place, leaf) for place, leaf in enumerate(leaves)])
        noisy, keys, pairs = draw(task, position, (n,), rows)
        h = _probabilities(merge_callable(arrays, static), noisy, keys, hard)
        chex.assert_equal_shape_suffix([h, weights], h.ndim - 1)
        return (h * weights.at[pairs.row].get(mode="fill", fill_value=0)).sum() / n

    def add_chunk(total: list[jax.Array] | None, position: Position) -> list[jax.Array]:
        gradients = canonical_convolutions(jax.grad(weighted))([leaves[place] for place in places], position)
        # Sums over many chunks are float32, also for a bfloat16 network.
        wide = [gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32)) for gradient in gradients]
        return wide if total is None else [a + b for a, b in zip(total, wide, strict=True)]

    gradients = scan_chunks(add_chunk, residuals[1].x.shape[0], n, rows)
    cotangents = {place: g.astype(leaves[place].dtype) for place, g in zip(places, gradients, strict=True)}
    return treedef.unflatten([cotangents.get(place) for place in range(len(leaves))])


def _score_backward(
    static: StaticCallable,
    n: int,
    rows: int,
    hard: bool,
    residuals: tuple[list[Any], Task, jax.Array],
    weights: jax.Array,
) -> tuple[None, Task]:
    """Return the mean of <weights, h - b> e / sigma^2, where h - b = (h - mean) n / (n - 1), e being the noise."""
    arrays, task, average = residuals
    variance = jnp.asarray(task.noise.scale, jnp.float32) ** 2

    def add_chunk(total: jax.Array | None, position: Position) -> jax.Array:
        noise, keys, pairs = draw_noise(task, position, (n,), rows)
        noisy = add_noise(task.noise, task.x, pairs.row, noise)
        chex.assert_equal_shape([noisy, noise])
        h = _probabilities(merge_callable(arrays, static), noisy, keys, hard)
        # The average as a baseline makes the variance smaller. It contains h itself, hence n / (n - 1).
        difference = (h - average.at[pairs.row].get(mode="clip")) * weights.at[pairs.row].get(mode="clip")
        weight = difference.sum(axis=tuple(range(1, h.ndim))) / ((n - 1) * variance)
        total = jnp.zeros(task.x.shape, noise.dtype) if total is None else total
        return total.at[pairs.row].add(along_rows(weight, noise) * noise, mode="drop")

    gradient = _only_once(scan_chunks(add_chunk, task.x.shape[0], n, rows).astype(task.x.dtype), task.x)
    return None, Task(None, None, gradient, None, None)  # pyright: ignore[reportArgumentType]


@jax.custom_jvp
def _in_x_only(parameter: jax.Array) -> jax.Array:
    """Return a parameter that the score estimator has no gradient for."""
    return parameter


@_in_x_only.defjvp
def _derivative_in_parameters(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "smooth(..., estimator='score') has gradients in x only, not in the arrays of f or the scale of the noise: "
        "estimator='pathwise' has them"
    )


@jax.custom_jvp
def _only_once(gradient: jax.Array, x: jax.Array) -> jax.Array:
    """Return a gradient at x whose derivative, along f, would not be that of the smoothed classifier: 0 of votes."""
    del x
    return gradient


@_only_once.defjvp
def _second_derivative(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "second derivatives are not available through smooth(..., estimator='score'), whose gradient does not follow "
        "f: estimator='pathwise' has them"
    )


def _differentiable(backward: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Return the average, compiled, with this backward pass."""
    average = jax.custom_vjp(_average, nondiff_argnums=(0, 1, 2, 3))
    average.defvjp(_forward, backward)
    return jax.jit(average, static_argnums=(0, 1, 2, 3))


_pathwise = _differentiable(_pathwise_backward)
_score = _differentiable(_score_backward)


def _probabilities(f: Any, noisy: jax.Array, keys: jax.Array, hard: bool) -> jax.Array:
    """Return softmax of the scores, or the vote, `f32[B, *components, K]`; zeros where a score is not finite."""
    scores = traced_scores(f, noisy, keys)
    classes = shape_of_scores(scores, len(noisy))[-1]
    finite = jnp.isfinite(scores).all(axis=-1, keepdims=True)
    # `where` comes first: the softmax of an infinite score would have a NaN gradient.
    scores = jnp.where(finite, scores, 0).astype(jnp.float32)
    h = jax.nn.one_hot(jnp.argmax(scores, axis=-1), classes) if hard else jax.nn.softmax(scores, axis=-1)
    return jnp.where(finite, h, 0)
