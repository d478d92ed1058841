"""One small network with fixed weights in plain JAX, its inputs and its loss."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from bridges.batches import Limits

SHAPE = (1, 4, 4)
SETTINGS = {"input_shape": SHAPE, "nb_classes": 3, "sample_size": 50, "scale": 0.5, "alpha": 0.01, "seed": 1}


def weights(outputs=3):
    rng = np.random.default_rng(5)
    return [rng.normal(size=s).astype(np.float32) / 4 for s in ((16, 8), (8, outputs))]


def reference(x, outputs=3, last=None):
    """Run the network in JAX on inputs `[N, 1, 4, 4]`."""
    first, second = weights(outputs)
    scores = jax.nn.relu(x.reshape(len(x), -1) @ first) @ second
    return {None: lambda s: s, "softmax": jax.nn.softmax, "log_softmax": jax.nn.log_softmax}[last](scores)


def cross_entropy(x, y, reduce=jnp.mean, last=None):
    scores = reference(x, last=last)
    scores = jnp.log(scores) if last == "softmax" else scores
    return reduce(-jax.nn.log_softmax(scores)[jnp.arange(len(y)), y])


def inputs(number=6, seed=0):
    return np.random.default_rng(seed).normal(size=(number, *SHAPE)).astype(np.float32)


def labels(number=6):
    return np.arange(number) % 3


class Keeps:
    """A defence after the network that leaves the scores as they are: with it, Flax too votes on the host."""

    apply_fit, apply_predict = False, True

    def __call__(self, scores):
        return scores


def calls(seen):
    """Return the batches that a watched network was called with since this was last asked."""
    jax.effects_barrier()  # what a callback of JAX notes may come after the result
    batches = list(seen)
    seen.clear()
    return batches


def watch_scores(backend, monkeypatch):
    """Return a list that will hold every batch that the networks of a backend's class get to score."""
    seen, scoring = [], backend.scoring

    @contextlib.contextmanager
    def watched(self, **options):
        with scoring(self, **options) as scores:
            yield lambda x: (seen.append(x), scores(x))[1]

    monkeypatch.setattr(backend, "scoring", watched)
    return seen


def watch_gradients(backend, monkeypatch):
    """Return a list that will hold every batch that gradients are taken in."""
    seen, vjp = [], backend.vjp
    monkeypatch.setattr(backend, "vjp", lambda self, x, *a, **k: (seen.append(x), vjp(self, x, *a, **k))[1])
    return seen


def leave_in_jax(backend, monkeypatch):
    """Leave noisy inputs in JAX, as on a GPU."""
    monkeypatch.setattr(backend, "on_host", lambda _, noisy: noisy)


def limit_rows(backend, rows, monkeypatch):
    """Let networks that are smoothed from now on get at most this many rows at once."""
    limits = Limits(layer_values=2**20, gradient_values=2**20, rows=rows)
    monkeypatch.setattr(backend, "limits", property(lambda _: limits, lambda *_: None), raising=False)
