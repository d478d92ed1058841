"""Randomized smoothing of any classifier with two hooks: predict, certify and fit as in ART."""

import functools
import math
import secrets
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsmooth
from bridges.batches import CPU_BATCH, even_rows, rows_drawn_at_once
from bridges.inputs import as_inputs, input_ids
from jaxsmooth.checks import check_alpha, check_integer, check_key, check_scale
from jaxsmooth.samples import fill_rows
from jaxsmooth.vectors import WideJit
from jaxsmooth.votes import stream_both

_PREDICTION, _TRAINING = range(2)  # keys among `_keys`; classes with gradients have 2 and 3
_OUTPUTS = ("one_hot", "frequencies", "log_frequencies")


class RandomizedSmoothingMixin:
    """Give a classifier the smoothed `predict`, `certify` and `fit` (Cohen et al. 2019, arXiv:1902.02918).

    Mix it in before a class that has the hooks `_predict_classifier(x, batch_size, training_mode, **kwargs)`, which
    returns scores `[B, C]`, and `_fit_classifier(x, y, batch_size, nb_epochs, **kwargs)`. x may hold more rows than
    `batch_size`, which is what goes through the network at once, and the last of several calls has what is left.

    Noise N(0, scale^2) is added to the caller's x, before anything else, in predict, certify and fit alike. It is
    never clipped. In predict and certify the noise of an input depends on the seed and on the input, not on the batch
    size, its position or the other inputs: another input meets other noise. `certify` gives an input the same
    certificate whenever it is asked. Each call of `predict` votes anew, as in ART, since attacks ask again until the
    answer changes; an instance made with the same seed gives the same predictions in the same order of calls.

    Args:
        sample_size: votes behind a prediction, and the selection votes of `certify` unless `n0` says otherwise.
        scale: standard deviation of the noise, in the units of x.
        alpha: failure probability of a prediction or a certificate, in (0, 1).
        seed: int or JAX key; from the operating system's entropy by default, kept as the attribute `key`.
        n0: selection votes of `certify`; `sample_size` by default.
        output: what `predict` returns, for attacks that look at more than the class: "one_hot" decisions, "frequencies"
            of the votes, or "log_frequencies" with half a vote added to each class.
        check: before the first votes of an instance, test whether scores depend on their row alone, as
            `jaxsmooth.check_classifier` does, on up to four inputs; not in training mode.
        *args: go to the next class.
        **kwargs: likewise.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named. ValueError: `check` found a fault.

    Example:
        >>> class Threshold:
        ...     def _predict_classifier(self, x, batch_size, training_mode):
        ...         return np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1)
        >>> class Smoothed(RandomizedSmoothingMixin, Threshold):
        ...     pass
        >>> classifier = Smoothed(sample_size=100, scale=0.5, seed=0)
        >>> classifier.predict([[2.0, 0.0], [0.0, -0.01]])
        array([[1., 0.],
               [0., 0.]])
        >>> label, radius = classifier.certify([[2.0, 0.0], [0.0, -0.01]], n=1000)
        >>> label, radius.round(1)
        (array([ 0, -1]), array([1.2, 0. ]))
    """

    def __init__(
        self,
        sample_size: int,
        *args: Any,
        scale: float = 0.1,
        alpha: float = 0.001,
        seed: int | jax.Array | None = None,
        n0: int | None = None,
        output: str = "one_hot",
        check: bool = True,
        **kwargs: Any,
    ) -> None:
        check_scale("scale", scale)
        sample_size, alpha = check_integer("sample_size", sample_size, 1), check_alpha(alpha)
        n0 = None if n0 is None else check_integer("n0", n0, 1)
        if output not in _OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(_OUTPUTS)}, got {output!r}")
        key = as_key(seed)
        super().__init__(*args, **kwargs)
        self.sample_size, self.scale, self.alpha, self.n0, self.output = sample_size, scale, alpha, n0, output
        self.key, self._predicted, self._draws = key, 0, 0
        self.check, self._was_checked = check, False

    @property
    def key(self) -> jax.Array:
        """The key that all noise is drawn from."""
        return self._key

    @key.setter
    def key(self, key: jax.Array) -> None:
        self._key = check_key(key)
        self._keys = _keys(self._key)

    def predict(self, x: Any, batch_size: int = 128, verbose: bool = False, **kwargs: Any) -> np.ndarray:
        """Predict with `sample_size` noisy votes for each input.

        Args:
            x: inputs `[N, ...]`.
            batch_size: rows in one call of the classifier, where it is not known to be faster with more or fewer.
            verbose: show a progress bar.
            is_abstain: abstain where the binomial test does not reject at level `alpha` (the default); `False` returns
                the class with most votes.
            **kwargs: `training_mode` and what else the hook takes.

        Returns:
            `f64[N, C]` one-hot rows, all zeros on abstention; or what else the instance's `output` says.
        """
        abstains = bool(kwargs.pop("is_abstain", True))
        key, inputs = self._keys[_PREDICTION], as_inputs(x, self._shape())
        first, ids = self._predicted, input_ids(inputs)
        rows = self._rows_at_once(inputs, check_integer("batch_size", batch_size, 1))
        count = functools.partial(jaxsmooth.stream_votes, key=key, n=self.sample_size, ids=ids, first=first)
        counts = np.asarray(self._count_votes(count, inputs, self.sample_size, rows, verbose, **kwargs))
        self._predicted = (first + self.sample_size) % 2**31
        if self.output == "frequencies":
            return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        if self.output == "log_frequencies":
            return np.log((counts + 0.5) / (self.sample_size + 0.5 * counts.shape[1]))
        if abstains:
            result = jaxsmooth.prediction(fill_rows(counts), n=self.sample_size, alpha=self.alpha)
            label = np.asarray(result.label)[: len(counts)]
        else:
            label = np.where(counts.max(axis=1) > 0, np.argmax(counts, axis=1), jaxsmooth.ABSTAIN)
        return (label[:, None] == np.arange(counts.shape[1])).astype(np.float64)

    def certify(
        self, x: Any, n: int, batch_size: int = 32, verbose: bool = False, **kwargs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Certify a class and an L2 radius for each input, as `jaxsmooth.certify` does, with `n` estimation votes.

        Args:
            x: inputs `[N, ...]`.
            n: estimation votes, an integer >= 1.
            batch_size: rows in one call of the classifier, where it is not known to be faster with more or fewer.
            verbose: show a progress bar.
            **kwargs: `training_mode` and what else the hook takes.

        Returns:
            `i64[N]` classes, -1 on abstention, and `f64[N]` radii in the units of x, 0 on abstention.
        """
        n, x = check_integer("n", n, 1), as_inputs(x, self._shape())
        n0 = self.sample_size if self.n0 is None else self.n0
        most = self._rows_at_once(x, check_integer("batch_size", batch_size, 1))
        rows = self._rows_of(len(x) * (n0 + n), most)  # selection and estimation samples in one
        count = functools.partial(stream_both, key=self.key, n0=n0, n=n, ids=input_ids(x))
        selection, counts = map(fill_rows, self._count_votes(count, x, n0 + n, rows, verbose, **kwargs))
        result = jaxsmooth.certificate(selection, counts, jaxsmooth.Gaussian(self.scale), n=n, alpha=self.alpha)
        return np.asarray(result.label, np.int64)[: len(x)], np.asarray(result.radius, np.float64)[: len(x)]

    def fit(self, x: Any, y: Any, batch_size: int = 128, nb_epochs: int = 10, **kwargs: Any) -> None:
        """Fit the classifier on noisy inputs, with fresh noise in every epoch.

        Args:
            x: inputs `[N, ...]`.
            y: labels, as the hook takes them.
            batch_size: rows in one training step.
            nb_epochs: number of epochs; the hook is called once for each.
            **kwargs: go to the hook.
        """
        x = as_inputs(x, self._shape())
        for _ in range(check_integer("nb_epochs", nb_epochs, 0)):
            self._fit_classifier(self._add_training_noise(x), y, batch_size=batch_size, nb_epochs=1, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, the key as plain data."""
        return {**self.__dict__, "_key": np.asarray(jax.random.key_data(self.key)), "_keys": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes back."""
        self.__dict__.update(state)
        self.key = state["_key"]

    def _predict_classifier(self, x: np.ndarray, batch_size: int, training_mode: bool, **kwargs: Any) -> np.ndarray:
        """Return scores `[B, C]`: the hook of the class that this is mixed into."""
        return super()._predict_classifier(x, batch_size, training_mode, **kwargs)  # pyright: ignore

    def _fit_classifier(self, x: np.ndarray, y: Any, batch_size: int, nb_epochs: int, **kwargs: Any) -> None:
        """Train: the hook of the class that this is mixed into."""
        super()._fit_classifier(x, y, batch_size, nb_epochs, **kwargs)  # pyright: ignore

    def _shape(self) -> tuple[int, ...] | None:
        """Return the shape of one input, where the class has one."""
        return getattr(self, "input_shape", None)

    def _blanks_rows(self) -> bool:
        """Return whether something after the network may take the scores of a row away, so that it does not vote."""
        return False

    def _count_votes(
        self, count: Callable[..., Any], x: np.ndarray, n: int, batch_size: int, verbose: bool, **kwargs: Any
    ) -> Any:
        """Return what a function counts of this classifier, of n samples for each input."""
        training_mode = kwargs.pop("training_mode", False)

        def as_rows(noisy: jax.Array) -> Any:
            return self._as_batch(noisy).reshape(-1, *x.shape[1:])

        def scores(batch: Any) -> np.ndarray:
            return np.asarray(self._predict_classifier(batch, batch_size, training_mode, **kwargs), np.float32)

        left = len(x) * n

        def scores_of_samples(noisy: jax.Array) -> Any:
            nonlocal left
            batch, used = as_rows(noisy), left
            left -= len(batch)
            if left >= 0 or isinstance(batch, jax.Array):
                return scores(batch)
            part = scores(batch[:used])  # what fills up the last batch is no sample: its scores are not looked at
            return np.concatenate([part, np.zeros((-left, *part.shape[1:]), np.float32)])

        rows = rows_drawn_at_once(len(x) * n, batch_size, math.prod(x.shape[1:]))
        noise = jaxsmooth.Gaussian(self.scale)
        if self.check and not (self._was_checked or training_mode or len(x) == 0):
            classes, finite = getattr(self, "nb_classes", None), not self._blanks_rows()
            # On copies, since a network may write to its inputs.
            jaxsmooth.check_classifier(
                lambda batch: scores(as_rows(batch.copy())), x[:4], noise=noise, classes=classes, finite=finite
            )
            self._was_checked = True
        return count(scores_of_samples, noise, x=as_drawn(x), batch_size=rows, progress=verbose)

    def _as_batch(self, noisy: jax.Array) -> Any:
        """Return noisy inputs as the hook takes them."""
        return np.asarray(noisy)

    def _rows_at_once(self, x: np.ndarray, batch_size: int) -> int:
        """Return how many noisy inputs go through the classifier at once: more than asked for where they are small."""
        values, most_rows = CPU_BATCH
        return max(batch_size, min(most_rows, values // math.prod(x.shape[1:])))

    def _rows_of(self, total: int, most: int) -> int:
        """Return how many of so many noisy inputs go through the classifier at once, at most as many as are said."""
        return even_rows(total, most)

    def _add_training_noise(self, x: np.ndarray) -> np.ndarray:
        """Add noise that was not drawn before."""
        noise = jaxsmooth.Gaussian(check_scale("scale", self.scale))  # under jit it could not be checked
        key = fold_in(self._keys[_TRAINING], self._draws)
        self._draws += 1
        return x + np.asarray(_sample(noise, key, as_drawn(x).shape)).reshape(x.shape)


@functools.partial(WideJit, static_argnames="shape")
def _sample(noise: jaxsmooth.Gaussian, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return noise.sample(key, shape)


def as_drawn(x: np.ndarray) -> np.ndarray:
    """Return inputs in the shape in which noise is drawn: on a processor flat rows, where the noise is the same.

    XLA takes a half longer over the axes of an image of 28x28 features than over flat rows; over 32x32 no longer.
    """
    return x.reshape(len(x), math.prod(x.shape[1:])) if jax.default_backend() == "cpu" else x


@jax.jit
def _keys(key: jax.Array) -> list[jax.Array]:
    """Return the keys of what is drawn beside selection and estimation votes, whose are `jaxsmooth.decision_keys`."""
    return [jax.random.fold_in(key, stream) for stream in range(2, 6)]


fold_in = jax.jit(jax.random.fold_in)
"""Return the key of a turn of a stream: compiled, since it is made at every call."""


def as_key(seed: Any) -> jax.Array:
    """Return the key of a seed: an integer, a key as it is, None for one of the operating system's random numbers."""
    if seed is None:
        seed = secrets.randbits(32)
    if isinstance(seed, (jax.Array, np.ndarray)) and not (seed.ndim == 0 and jnp.issubdtype(seed.dtype, jnp.integer)):
        return check_key(seed)
    return jax.random.key(check_integer("seed", seed, 0, 2**32 - 1), impl="threefry2x32")
