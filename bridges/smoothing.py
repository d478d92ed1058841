"""Randomized smoothing of any classifier with two hooks: predict, certify and fit as in ART."""

import math
import threading
from abc import ABC
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxsmooth
from bridges.batches import CPU, Plan, plan_votes
from bridges.inputs import as_inputs, input_ids
from jaxsmooth import Stream
from jaxsmooth.arguments import as_alpha, as_flag, as_integer, as_key, as_scale, refuse_unknown

_COUNTING = threading.Lock()  # of the samples that were drawn
_OUTPUTS = ("one_hot", "frequencies", "log_frequencies")


class Voter(NamedTuple):
    """A classifier as the core takes it.

    Attributes:
        f: from noisy inputs to scores.
        plan: how many rows are drawn, and go through it, at once.
        compiled: whether JAX can trace f.
    """

    f: Any
    plan: Plan
    compiled: bool


class RandomizedSmoothingMixin(ABC):  # noqa: B024 (as ART's classes are, so that its tools may assign `__class__`)
    """Give a classifier the smoothed `predict`, `certify` and `fit` (Cohen et al. 2019, arXiv:1902.02918).

    Mix it in before a class that has the hooks `_predict_classifier(x, batch_size, training_mode, **kwargs)`, which
    returns scores `[B, C]`, and `_fit_classifier(x, y, batch_size, nb_epochs, **kwargs)`. The first gets at most
    `batch_size` rows.

    Noise N(0, scale^2) is added to the caller's x, before anything else, in predict, certify and fit alike. It is
    never clipped. In predict and certify the noise of an input depends on the seed and on the input, not on the batch
    size, its position or the other inputs: another input meets other noise. `certify` gives an input the same
    certificate whenever it is asked. Each call of `predict` votes again, as in ART, because attacks ask again until the
    answer changes; an instance made with the same seed gives the same predictions in the same order of calls.

    Args:
        sample_size: votes behind a prediction, and the selection votes of `certify` unless `n0` says otherwise.
        scale: standard deviation of the noise, in the units of x.
        alpha: failure probability of a prediction or a certificate, in (0, 1).
        seed: int or JAX key; from the operating system's entropy by default, kept as the attribute `key`.
        n0: selection votes of `certify`; `sample_size` by default.
        output: what `predict` returns, for attacks that look at more than the class: "one_hot" decisions, "frequencies"
            of the votes, or "log_frequencies" with half a vote added to each class.
        check: before the first votes of an instance, test whether scores depend on their row only, as
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
        (array([ 0, -1]), array([1.1, 0. ]))
    """

    _limits = CPU

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
        sample_size, alpha = check_smoothing(sample_size, scale, alpha, n0, output)
        as_flag("check", check)
        key = jaxsmooth.key_of_seed(seed)
        super().__init__(*args, **kwargs)
        self._input_shape = getattr(self, "input_shape", None)
        self.sample_size = sample_size
        self.scale = scale
        self.alpha = alpha
        self._begin(key, n0, output, check)

    def _begin(self, key: jax.Array, n0: int | None, output: str, check: bool) -> None:
        """Set what `set_params` does not change, and begin to count what is drawn."""
        self.n0 = n0
        self.output = output
        self.check = check
        self.key = key
        self._predicted = 0  # samples of each input that `predict` has used
        self._draws = 0  # draws of training noise
        self._was_checked = False

    @property
    def key(self) -> jax.Array:
        """The key that all noise is drawn from."""
        return self._key

    @key.setter
    def key(self, key: jax.Array) -> None:
        self._key = as_key(key)
        # Key data of the streams that are drawn from in every call: a typed key would be read each time.
        streams = (Stream.PREDICTION, Stream.GRADIENTS)
        self._streams = {stream: _data(jaxsmooth.stream_key(self._key, stream)) for stream in streams}
        self._key_data = _data(self._key)

    def predict(self, x: Any, batch_size: int | None = None, verbose: bool = False, **kwargs: Any) -> np.ndarray:
        """Predict with `sample_size` noisy votes for each input.

        Args:
            x: inputs `[N, ...]`.
            batch_size: at most this many rows go through the classifier at once; by default the number
                that it is fastest with.
            verbose: show a progress bar.
            is_abstain: abstain where the binomial test does not reject at level `alpha` (the default); `False` returns
                the class with most votes.
            **kwargs: `training_mode` and what else the hook takes.

        Returns:
            `f64[N, C]` one-hot rows, all zeros on abstention; or what else the instance's `output` says.
        """
        sample_size = as_integer("sample_size", self.sample_size, 1)  # anyone may set an attribute
        refuse_unknown("output", self.output, _OUTPUTS)
        abstains = as_flag("is_abstain", kwargs.pop("is_abstain", True))
        x = as_inputs(x, self._input_shape, self.scale)
        voter = self._voter(x, sample_size, batch_size, even=False, verbose=verbose, **kwargs)
        counts = self._count_votes(voter, x, sample_size, self._reserve(sample_size), verbose)
        if self.output == "frequencies":
            return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        if self.output == "log_frequencies":
            return np.log((counts + 0.5) / (sample_size + 0.5 * counts.shape[1]))
        if abstains:
            votes = jaxsmooth.Votes(counts=counts, n=sample_size)
            label = np.asarray(jaxsmooth.prediction(votes, alpha=self.alpha).label)
        else:
            label = np.where(counts.max(axis=1) > 0, np.argmax(counts, axis=1), jaxsmooth.ABSTAIN)
        return (label[:, None] == np.arange(counts.shape[1])).astype(np.float64)

    def certify(
        self, x: Any, n: int, batch_size: int | None = None, verbose: bool = False, **kwargs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Certify a class and an L2 radius for each input, as `jaxsmooth.certify` does, with `n` estimation votes.

        Args:
            x: inputs `[N, ...]`.
            n: estimation votes, an integer >= 1.
            batch_size: at most this many rows go through the classifier at once; by default the number
                that it is fastest with.
            verbose: show a progress bar.
            **kwargs: `training_mode` and what else the hook takes.

        Returns:
            `i64[N]` classes, -1 on abstention, and `f64[N]` radii in the units of x, 0 on abstention.
        """
        n = as_integer("n", n, 1)
        x = as_inputs(x, self._input_shape, self.scale)
        n0 = as_integer("n0, or sample_size,", self.sample_size if self.n0 is None else self.n0, 1)
        voter = self._voter(x, n0 + n, batch_size, even=True, verbose=verbose, **kwargs)
        result = self._certify_by(voter, x, n0, n, verbose)
        return np.asarray(result.label, np.int64), np.asarray(result.radius, np.float64)

    def fit(self, x: Any, y: Any, batch_size: int = 128, nb_epochs: int = 10, **kwargs: Any) -> None:
        """Fit the classifier on noisy inputs, with fresh noise in every epoch.

        Args:
            x: inputs `[N, ...]`.
            y: labels, as the hook takes them.
            batch_size: rows in one training step.
            nb_epochs: number of epochs; the hook is called once for each.
            **kwargs: go to the hook.
        """
        x = as_inputs(x, self._input_shape)
        for _ in range(as_integer("nb_epochs", nb_epochs, 0)):
            self._fit_classifier(self._add_training_noise(x), y, batch_size=batch_size, nb_epochs=1, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, the key as plain data."""
        return {**self.__dict__, "_key": self._key_data, "_streams": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes back."""
        vars(self).update(state)
        self.key = state["_key"]

    def _predict_classifier(self, x: np.ndarray, batch_size: int, training_mode: bool, **kwargs: Any) -> np.ndarray:
        """Return scores `[B, C]`: the hook of the class that this is mixed into."""
        return super()._predict_classifier(x, batch_size, training_mode, **kwargs)  # pyright: ignore

    def _fit_classifier(self, x: np.ndarray, y: Any, batch_size: int, nb_epochs: int, **kwargs: Any) -> None:
        """Train: the hook of the class that this is mixed into."""
        super()._fit_classifier(x, y, batch_size, nb_epochs, **kwargs)  # pyright: ignore

    def _voter(self, x: np.ndarray, n: int, batch_size: Any, *, even: bool, verbose: bool, **kwargs: Any) -> Voter:
        """Return the classifier for n votes on each input, once it was found to be a function of each row."""
        as_flag("verbose", verbose)  # any voter that is called can show a bar
        if batch_size is not None:
            batch_size = as_integer("batch_size", batch_size, 1)
        training_mode = as_flag("training_mode", kwargs.pop("training_mode", False))
        widest = self._find_widest(x)
        # Scores stay in memory as noisy inputs do, and may be the larger ones.
        classes = getattr(self, "_nb_classes", 0) or getattr(self, "nb_classes", 0)
        features = max(math.prod(x.shape[1:]), classes or 0)
        plan = plan_votes(len(x) * n, features, widest, self._limits, batch_size, even=even)
        if self.check and not (self._was_checked or training_mode or len(x) == 0):
            self._check(x[:4], plan.rows, kwargs)
            self._was_checked = True
        left = len(x) * n

        def scores(noisy: jax.Array) -> np.ndarray:
            nonlocal left
            rows = self._as_batch(noisy)
            # What fills up the last batch is no sample, and its scores are not looked at. It is kept from the network,
            # unless its size is compiled for.
            cuts = self._limits.least == 0 and isinstance(rows, np.ndarray)
            found = self._scores(rows[: max(left, 0)] if cuts else rows, plan.rows, training_mode, kwargs)
            left -= len(rows)
            return np.concatenate([found, np.zeros((len(rows) - len(found), *found.shape[1:]), np.float32)])

        return Voter(scores, plan, compiled=False)

    def _certify_by(self, voter: Voter, x: np.ndarray, n0: int, n: int, verbose: bool) -> jaxsmooth.Certificate:
        """Return the certificate of each input."""
        return jaxsmooth.certify(
            voter.f,
            jaxsmooth.Gaussian(self.scale),
            self._key_data,
            x,
            n0=n0,
            n=n,
            alpha=self.alpha,
            batch_size=voter.plan.drawn,
            ids=input_ids(x),
            compiled=False,
            progress=verbose,
        )

    def _count_votes(self, voter: Voter, x: np.ndarray, n: int, first: int, verbose: bool) -> np.ndarray:
        """Return the votes of samples first to first + n - 1 of each input."""
        return jaxsmooth.stream_votes(
            voter.f,
            jaxsmooth.Gaussian(self.scale),
            self._streams[Stream.PREDICTION],
            x,
            n=n,
            batch_size=voter.plan.drawn,
            ids=input_ids(x),
            first=first,
            progress=verbose,
        )

    def _scores(self, x: Any, rows: int, training_mode: bool, kwargs: dict[str, Any]) -> np.ndarray:
        """Return the scores of a batch, `rows` rows at a time."""
        parts = [
            _in_float32(np.asarray(self._predict_classifier(x[start : start + rows], rows, training_mode, **kwargs)))
            for start in range(0, max(len(x), 1), rows)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _check(self, x: np.ndarray, rows: int, kwargs: dict[str, Any]) -> None:
        """Test whether scores depend on their row only."""
        jaxsmooth.check_classifier(
            # On copies, because a network may write to its inputs.
            lambda batch: self._scores_to_check(np.array(batch), rows, kwargs),
            x,
            noise=jaxsmooth.Gaussian(self.scale),
            classes=getattr(self, "nb_classes", None),
            finite=not self._blanks_rows(),
        )

    def _scores_to_check(self, x: Any, rows: int, kwargs: dict[str, Any]) -> np.ndarray:
        """Return scores that must depend on their row only."""
        return self._scores(x, rows, False, kwargs)

    def _noisy_samples(self, x: Any, n: int | None = None) -> np.ndarray:
        """Return n noisy copies of one input, new ones at each call: a private method of ART's that people call."""
        inputs, first, count = self._take_samples(x, n)
        noise = jaxsmooth.Gaussian(self.scale)
        key = self._streams[Stream.PREDICTION]
        ids = input_ids(inputs)
        samples = jaxsmooth.stream_samples(noise, key, inputs, n=count, batch_size=count, ids=ids, first=first)
        return np.asarray(next(samples)[0])

    def _prediction_counts(self, x: Any, n: int | None = None, batch_size: int | None = None) -> np.ndarray:
        """Return the votes of n noisy copies of one input, `[C]`: a private method of ART's that people call."""
        inputs, first, count = self._take_samples(x, n)
        voter = self._voter(inputs, count, batch_size, even=False, verbose=False)
        return self._count_votes(voter, inputs, count, first, False)[0]

    def _take_samples(self, x: Any, n: int | None) -> tuple[np.ndarray, int, int]:
        """Return one input as a batch, and which samples of it are to be used: the first, and how many."""
        count = as_integer("n", self.sample_size if n is None else n, 1)
        inputs = as_inputs(np.asarray(x)[None], self._input_shape)
        return inputs, self._reserve(count), count

    def _reserve(self, n: int) -> int:
        """Return the first of n samples of each input that no other call of `predict` uses, from any thread."""
        with _COUNTING:
            first = self._predicted
            self._predicted = (first + n) % 2**31
        return first

    def _find_widest(self, x: np.ndarray) -> int:
        """Return how many values the widest layer has for one input: for a classifier of unknown layers, 0."""
        del x
        return 0

    def _as_batch(self, noisy: jax.Array) -> Any:
        """Return noisy inputs as the hook takes them."""
        return np.asarray(noisy)

    def _blanks_rows(self) -> bool:
        """Return whether something after the network may take the scores of a row away, so that it does not vote."""
        return False

    def _add_training_noise(self, x: np.ndarray) -> np.ndarray:
        """Add noise that was not drawn before."""
        return np.asarray(jaxsmooth.add_noise(jaxsmooth.Gaussian(self.scale), self._next_training_key(), x))

    def _next_training_key(self) -> jax.Array:
        """Return the key of training noise that was not drawn before."""
        with _COUNTING:
            draw = self._draws
            self._draws += 1
        return jaxsmooth.stream_key(self._key, Stream.TRAINING, draw)


def _in_float32(scores: np.ndarray) -> np.ndarray:
    """Return scores in float32, with the same class: a row of wider ones that float32 cannot order becomes one-hot.

    Example:
        >>> _in_float32(np.array([[1e-60, 2e-60], [0.5, 0.25]]))
        array([[0.  , 1.  ],
               [0.5 , 0.25]], dtype=float32)
    """
    with np.errstate(over="ignore"):
        narrow = np.asarray(scores, np.float32)
    if scores.dtype.itemsize <= 4 or scores.ndim != 2 or scores.shape[1] == 0:
        return narrow
    finite = np.isfinite(scores).all(axis=1)
    classes = scores.argmax(axis=1)
    changed = finite & ((narrow.argmax(axis=1) != classes) | ~np.isfinite(narrow).all(axis=1))
    narrow[changed] = np.eye(scores.shape[1], dtype=np.float32)[classes[changed]]
    return narrow


def _data(key: jax.Array) -> Any:
    """Return raw key data, which every function takes for a key."""
    return np.asarray(jax.random.key_data(key))


def check_smoothing(sample_size: Any, scale: Any, alpha: Any, n0: Any, output: Any) -> tuple[int, float]:
    """Check the settings of smoothing, and return `sample_size` and `alpha` as numbers."""
    as_scale("scale", scale)
    sample_size = as_integer("sample_size", sample_size, 1)
    alpha = as_alpha(alpha)
    if n0 is not None:
        as_integer("n0", n0, 1)
    refuse_unknown("output", output, _OUTPUTS)
    return sample_size, alpha
