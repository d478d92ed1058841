"""What a run over a data set does with each group of inputs, and what it writes of that."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxsmooth.anytime import AnytimeCertificate, certify_anytime
from jaxsmooth.callables import split_callable
from jaxsmooth.certify import certificate, check_bound, reduced_radius
from jaxsmooth.checks import check_alpha, check_callable, check_integer, check_key, check_noise
from jaxsmooth.classifiers import refuse_faults
from jaxsmooth.devices import over_devices
from jaxsmooth.noise_report import NoiseReport, noise_report
from jaxsmooth.plans import check_radii
from jaxsmooth.precision import certify_within
from jaxsmooth.predict import prediction
from jaxsmooth.rounds import Step, check_host_task, choose, make_step, scores_of_first, vote_until
from jaxsmooth.samples import check_task
from jaxsmooth.sequential import certify_radii
from jaxsmooth.types import Classifier, Noise
from jaxsmooth.votes import decision_keys

_PACKAGES = ("jaxsmooth", "jax", "jaxlib", "numpy", "scipy")
_CLAIMED = ("noise", "scale", "norm", "mode", "radii", "precision", "alpha", "n0", "n", "bound", "dtype")


class Certificates(NamedTuple):
    """What a rule finds for `N` inputs: classes, radii, numbers of votes, and the votes `[N, K]`."""

    label: Any
    radius: Any
    votes: Any
    selection: Any
    counts: Any


class Rule(NamedTuple):
    """How a run certifies.

    Attributes:
        certify: from inputs `[N, *event]` and their ids to `Certificates`.
        select: from the same to the selection votes alone.
        examine: from the same to a report on the noise, if it can be tested; refuses a classifier that is no function
            of each row alone, and noise that fails.
        settings: what must not change within a run, in a form that JSON can hold.
        group: how many inputs to certify together, by default.
    """

    certify: Callable[[np.ndarray, np.ndarray], Certificates]
    select: Callable[[np.ndarray, np.ndarray], np.ndarray]
    examine: Callable[[np.ndarray, np.ndarray], NoiseReport | None]
    settings: dict[str, Any]
    group: int


def make_rule(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    radii: Sequence[float] | None,
    precision: float | None,
    until: Callable[[AnytimeCertificate], bool] | None,
    n0: int,
    n: int,
    alpha: float,
    bound: Literal["cohen", "runner_up"],
    batch_size: int,
    compiled: bool,
    devices: Sequence[Any] | None,
) -> Rule:
    """Return the rule of `certify_dataset`'s arguments.

    Raises:
        ValueError, TypeError: an argument is not as described.
    """
    check_bound(bound, noise)
    mode, n0 = _mode(radii, precision, until, bound), check_integer("n0", n0, 1, 2**30)
    f, noise, key, n, alpha, batch_size, step, settings = _votes(f, noise, key, n, alpha, batch_size, compiled, devices)
    settings |= {"n0": n0, "mode": mode, "bound": bound, "precision": precision}
    settings["radii"] = None if radii is None else check_radii(radii)
    selection_key, estimation_key = decision_keys(key)
    common: Any = {"n0": n0, "alpha": alpha, "batch_size": batch_size, "compiled": compiled}

    def select(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
        task, _ = check_host_task("certify_dataset", f, noise, selection_key, x, n0, batch_size, ids)
        return np.asarray(choose(f, task, selection_key, n0, batch_size, compiled)[1])

    def fixed(x: np.ndarray, ids: np.ndarray) -> Certificates:
        selection = select(x, ids)
        task, _ = check_host_task("certify_dataset", f, noise, estimation_key, x, n, batch_size, ids)
        counts = vote_until(step, task, np.full(len(x), n), batch_size)
        result = certificate(selection, counts, noise, n=n, alpha=alpha, bound=bound)
        found = reduced_radius(noise, x, result.label, result.radius)
        return Certificates(found["label"], found["radius"], np.full(len(x), n), selection, counts)

    def grid(x: np.ndarray, ids: np.ndarray) -> Certificates:
        result = certify_radii(f, noise, key, x, radii or [], n=n, ids=ids, **common)
        counts = _only(result.state.label, result.state.hits, np.shape(result.state.selection))
        return Certificates(result.label, result.radius, result.votes, result.state.selection, counts)

    def within(x: np.ndarray, ids: np.ndarray) -> Certificates:
        result = certify_within(f, noise, key, x, precision or 0.0, n=n, ids=ids, bound=bound, **common)
        return Certificates(result.label, result.radius, result.votes, result.selection, result.counts)

    def anytime(x: np.ndarray, ids: np.ndarray) -> Certificates:
        results = certify_anytime(f, noise, key, x, ids=ids, **common)
        result = next(r for r in results if r.votes >= n or (until is not None and until(r)))
        selection = select(x, ids)
        counts = _only(selection.argmax(axis=1), result.hits, selection.shape)
        return Certificates(result.label, result.radius, np.full(len(x), result.votes), selection, counts)

    certify = {"fixed": fixed, "grid": grid, "precision": within, "anytime": anytime}[mode]
    # One input at a time is stopped when it is ready; the other sequential modes fill batches from many.
    group = {"fixed": _group(batch_size, n0, n), "anytime": 1}.get(mode, 64)
    return Rule(certify, select, partial(_examine, step, noise, estimation_key, batch_size), settings, group)


def make_prediction_rule(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    n: int,
    alpha: float,
    batch_size: int,
    compiled: bool,
    devices: Sequence[Any] | None,
) -> Rule:
    """Return the rule of `predict_dataset`'s arguments.

    Raises:
        ValueError, TypeError: an argument is not as described.
    """
    f, noise, key, n, alpha, batch_size, step, settings = _votes(f, noise, key, n, alpha, batch_size, compiled, devices)
    settings, few = {**settings, "mode": "prediction"}, min(n, 100)

    def select(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
        task, _ = check_host_task("predict_dataset", f, noise, key, x, n, batch_size, ids)
        return np.asarray(vote_until(step, task, np.full(len(x), few), batch_size))

    def predict(x: np.ndarray, ids: np.ndarray) -> Certificates:
        task, _ = check_host_task("predict_dataset", f, noise, key, x, n, batch_size, ids)
        begun = select(x, ids)
        counts = vote_until(step, task, np.full(len(x), n), batch_size, jax.numpy.asarray(begun), few)
        result = prediction(counts, n=n, alpha=alpha)
        return Certificates(result.label, np.zeros(len(x)), np.full(len(x), n), begun, counts)

    examine = partial(_examine, step, noise, key, batch_size)
    return Rule(predict, select, examine, settings, _group(batch_size, few, n - few))


class _Votes(NamedTuple):
    """Where the votes of a run come from."""

    f: Any
    noise: Noise
    key: jax.Array
    n: int
    alpha: float
    batch_size: int
    step: Step
    settings: dict[str, Any]


def _votes(
    f: Any, noise: Any, key: Any, n: Any, alpha: Any, batch_size: Any, compiled: bool, devices: Sequence[Any] | None
) -> _Votes:
    """Check what every run has, and return it with the step of the classifier and what its header says."""
    check_callable(f)
    noise, key, alpha = check_noise(noise), check_key(key), check_alpha(alpha)
    n, batch_size = check_integer("n", n, 1, 2**30), check_integer("batch_size", batch_size, 1, 2**30)
    settings = {**_origin(f, noise, key), "alpha": alpha, "n": n}
    f, batch_size = _spread(f, batch_size, compiled, devices)
    return _Votes(f, noise, key, n, alpha, batch_size, make_step(f, compiled), settings)


def _examine(
    step: Step, noise: Noise, key: jax.Array, batch_size: int, x: np.ndarray, ids: np.ndarray
) -> NoiseReport | None:
    """Test the classifier and the noise on samples of the first input."""
    task, _, _ = check_task(noise, key, x[:1], batch_size, batch_size, ids[:1], 0)
    samples = np.arange(batch_size, dtype=np.uint32)
    places = np.arange(0, batch_size - 1, 2)
    # Every other sample is one place further on, among samples that the first batch has not.
    moved = samples + np.uint32(batch_size)
    moved[places + 1] = samples[places]
    refuse_faults(partial(scores_of_first, step, task), samples, moved, batch_size, (places, places + 1))
    if not hasattr(noise, "cdf"):
        return None
    report = noise_report(noise, key, x[:1], ids=ids[:1])
    if report.failed:
        raise ValueError(f"noise must be what it is taken for, but it failed the tests {', '.join(report.failed)}")
    return report


def claim(settings: Mapping[str, Any]) -> str:
    """Return what a certificate of a run claims, as `name=value` words for its line in the log.

    Example:
        >>> claim({"norm": 2, "radii": [0.25, 0.5], "precision": None, "key": [0, 1], "versions": {"jaxsmooth": "0.1"}})
        'norm=2 radii=0.25,0.5 jaxsmooth=0.1'
    """
    words = {name: settings[name] for name in _CLAIMED if settings.get(name) is not None}
    words |= {name: settings["versions"][name] for name in ("jaxsmooth", "jax") if name in settings["versions"]}
    texts = {name: ",".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in words.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())


def _origin(f: Classifier, noise: Noise, key: jax.Array) -> dict[str, Any]:
    """Return what the votes of a run come from, in a form for its header."""
    return {
        "noise": type(noise).__name__,
        "norm": noise.norm,
        # float32, as it would be written shortest
        "scale": [float(str(np.float32(leaf))) for leaf in jax.tree.leaves(noise) if np.size(leaf) == 1],
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "classifier": _digest(f),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _group(batch_size: int, *votes: int) -> int:
    """Return the least number of inputs, up to 64, that leave at most 0.5 % of the rows of their batches unused.

    Args:
        batch_size: rows of a batch.
        votes: numbers of votes for each input, counted one after the other.

    Example:
        >>> _group(256, 100, 100_000), _group(64, 100, 1000)
        (1, 8)
    """

    def is_full(inputs: int) -> bool:
        rows = batch_size * sum(-(-inputs * number // batch_size) for number in votes)
        return inputs * sum(votes) >= 0.995 * rows

    return next((inputs for inputs in range(1, 64) if is_full(inputs)), 64)


def _mode(radii: Any, precision: Any, until: Any, bound: str) -> str:
    """Return the mode that the arguments ask for."""
    given = {"radii": radii, "precision": precision, "until": until}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are different modes: give one of them")
    mode = {"radii": "grid", "precision": "precision", "until": "anytime"}[named[0]] if named else "fixed"
    if mode in ("grid", "anytime") and bound != "cohen":
        raise ValueError(f"bound must be 'cohen' with {named[0]}")
    if until is not None and not callable(until):
        raise TypeError(f"until must be a function of an AnytimeCertificate, got {until!r}")
    if precision is not None:
        check_alpha(precision, "precision")
    return mode


def _spread(f: Any, batch_size: int, compiled: bool, devices: Sequence[Any] | None) -> tuple[Any, int]:
    """Return the classifier on the devices that are to be used, and the rows of a batch for all of them."""
    if not compiled:
        if devices is not None:
            raise ValueError("devices must be None where compiled is false: f is called here, wherever it runs")
        return f, batch_size
    number = len(jax.local_devices() if devices is None else devices)
    return (f, batch_size) if devices is None and number == 1 else (over_devices(f, devices), number * batch_size)


def _only(label: Any, hits: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return votes for one class each, the others not being known."""
    counts = np.zeros(shape, np.int32)
    counts[np.arange(shape[0]), np.asarray(label)] = hits
    return counts


def _digest(f: Any) -> str:
    """Return a digest of the arrays in a callable pytree."""
    digest = hashlib.sha256()
    for array in split_callable(f)[0]:
        digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
