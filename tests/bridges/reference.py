"""One small network with fixed weights in plain JAX, its inputs and its loss."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

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


def watch_scores(classifier, monkeypatch):
    """Return a list that will hold every batch that the network of a class gets to score."""
    seen, scoring = [], classifier._backend.scoring

    @contextlib.contextmanager
    def watched(**options):
        with scoring(**options) as scores:
            yield lambda x: (seen.append(x), scores(x))[1]

    monkeypatch.setattr(classifier._backend, "scoring", watched)
    return seen
