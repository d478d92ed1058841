"""Long runs on the host: an interrupt stops them soon, many calls leave nothing behind, threads agree."""

import contextlib
import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsmooth
from jaxsmooth import Fixed, Gaussian
from tests.classifiers import first_features, inputs
from tests.memory import needs_proc, resident

KEY, NOISE = jax.random.key(4), Gaussian(1.0)


class Interrupted:
    """A classifier during whose fifth call the user presses Ctrl-C."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        if self.calls == 5:
            signal.raise_signal(signal.SIGINT)
        return np.asarray(first_features(x))


class InterruptedProgram(Interrupted):
    """The same, inside a compiled program, each call of which takes `seconds`: the signal comes from another thread."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def __call__(self, x):
        def note():
            self.calls += 1
            if self.calls == 5:
                threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
            time.sleep(self.seconds)

        jax.debug.callback(note)
        return first_features(x)


def forever(f, compiled, path):
    """Return long calls, of some 50,000 batches each."""
    x, data = inputs(3), (np.asarray(inputs(3)), np.arange(3))
    many = {"n": 2**17, "batch_size": 8}
    settings = {**many, "n0": 8, "compiled": compiled}
    fewer = {"batch_size": 8, "compiled": compiled}
    yield lambda: jaxsmooth.certify_radii(f, NOISE, KEY, x * 0, [0.001], looks=[2**17], **settings)
    yield lambda: jaxsmooth.certify_within(f, NOISE, KEY, x, 1e-4, **settings)
    yield lambda: list(itertools.islice(jaxsmooth.certify_anytime(f, NOISE, KEY, x, n0=8, votes=2**17, **fewer), 1))
    run = {**fewer, "mode": Fixed(n0=8, n=2**17), "path": path, "progress": False, "check": False}
    run |= {"devices": jax.local_devices()[:1]} if compiled else {}
    yield lambda: jaxsmooth.certify_dataset(f, NOISE, KEY, data, **run)
    if not compiled:
        yield lambda: jaxsmooth.stream_votes(f, NOISE, KEY, x, **many)
        yield lambda: jaxsmooth.certify(f, NOISE, KEY, x, **settings)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("place", range(6))
def test_an_interrupt_stops_a_classifier_that_is_called_within_two_batches(tmp_path, place):
    f = Interrupted()
    calls = list(forever(f, False, tmp_path / "a.tsv"))
    with pytest.raises(KeyboardInterrupt):
        calls[place]()
    assert f.calls <= 7


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("seconds", "more"), [(0.05, 2), (0.005, 2 * 16)], ids=["slow", "fast"])
@pytest.mark.parametrize("place", range(4))
def test_an_interrupt_stops_a_compiled_classifier_within_two_calls(tmp_path, place, seconds, more):
    """A call has one batch of those that take 50 ms or more, and at most 16 of others."""
    f = InterruptedProgram(seconds)
    calls = list(forever(f, True, tmp_path / "a.tsv"))
    with pytest.raises((KeyboardInterrupt, jax.errors.JaxRuntimeError)) as caught:
        calls[place]()
    # Where it meets a callback, JAX makes an error of its own of it.
    assert "KeyboardInterrupt" in repr(caught.value)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.effects_barrier()
    assert f.calls <= 5 + more
    # The process goes on as if nothing had been.
    assert jaxsmooth.certify(first_features, NOISE, KEY, inputs(2), n=100).label.shape == (2,)


def many_calls(call):
    """Return by how much memory, in MB, and the number of threads grow from the 400th to the 2,000th call."""
    for _ in range(400):
        call()
    memory, threads = resident(), threading.active_count()
    for _ in range(1600):
        call()
    return resident() - memory, threading.active_count() - threads


@needs_proc
@pytest.mark.parametrize("run", ["certify", "stream_votes"])
def test_two_thousand_calls_leave_neither_memory_nor_threads(run):
    x = inputs(2)
    calls = {
        "certify": lambda: jaxsmooth.certify(first_features, NOISE, KEY, x, n=10, n0=10),
        "stream_votes": lambda: jaxsmooth.stream_votes(first_features, NOISE, KEY, x, n=10),
    }
    memory, threads = many_calls(calls[run])
    assert memory < 20  # 13 kB a call would be seen
    assert threads == 0


def test_eight_threads_certify_as_one_does():
    x = inputs(8)

    def certify(place):
        return jaxsmooth.certify(first_features, NOISE, KEY, x[place : place + 1], n=1000, ids=[place])

    alone = [certify(place) for place in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(certify, list(range(8)) * 4))
    for place, result in enumerate(together):
        chex.assert_trees_all_equal(result, alone[place % 8])


def test_eight_threads_go_through_a_stream_each():
    x = jnp.asarray(inputs(4))

    def count(seed):
        return jaxsmooth.stream_votes(first_features, NOISE, jax.random.key(seed), x, n=300, batch_size=64)

    alone = [count(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for result, expected in zip(pool.map(count, range(8)), alone, strict=True):
            np.testing.assert_array_equal(result, expected)
