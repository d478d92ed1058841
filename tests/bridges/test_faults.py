"""Faults in a framework's model, in the same words for every framework, and calls from many threads."""

import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import jaxsmooth
from jaxsmooth import Gaussian
from tests.bridges.frameworks import PyTorch, TensorFlow
from tests.bridges.reference import Keeps, inputs
from tests.memory import needs_proc
from tests.test_faults import many_calls

BRIDGED = pytest.mark.parametrize("bridged", [PyTorch, TensorFlow], ids=lambda framework: framework.name)


def faulty(framework, fault):
    """Return a network in which something goes wrong, as a JAX function."""
    watched, model = [], framework.network()

    def run(x, training=False):
        del training
        watched.append(1)
        return fault(model, x)

    if framework is PyTorch:
        from torch import nn

        from bridges.pytorch import as_jax

        class Faulty(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = model

            def forward(self, x):
                return run(x)

        return as_jax(Faulty())
    import tensorflow as tf

    from bridges.tensorflow import as_jax

    def in_python(x):
        scores = tf.numpy_function(lambda x: np.asarray(run(tf.constant(x))), [x], tf.float32)
        return tf.ensure_shape(scores, [None, 3])

    return as_jax(in_python)


def count(f):
    return jax.jit(lambda x: jaxsmooth.count_votes(f, Gaussian(0.5), jax.random.key(0), x, n=20))(inputs(2))


@BRIDGED
def test_an_exception_arrives_with_the_model_s_words_and_the_process_goes_on(bridged):
    state = {"broken": False}

    def fault(model, x):
        if state["broken"] and len(x) > 2:
            raise RuntimeError("the valve is stuck")
        return model(x)

    f = faulty(bridged, fault)
    before = count(f)
    state["broken"] = True
    with pytest.raises(Exception, match="the valve is stuck"):
        jax.block_until_ready(count(f))
    state["broken"] = False
    np.testing.assert_array_equal(count(f), before)


@BRIDGED
def test_scores_that_are_nan_vote_for_no_class_under_jit(bridged):
    votes = count(faulty(bridged, lambda model, x: model(x) * float("nan")))
    np.testing.assert_array_equal(votes, np.zeros((2, 3)))


def test_eight_threads_certify_as_one_does(framework):
    x, classifier = inputs(8), framework.smoothed()

    def certify(place):
        return classifier.certify(x[place : place + 1], n=500)

    alone = [certify(place) for place in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(certify, list(range(8)) * 2))
    for place, result in enumerate(together):
        np.testing.assert_array_equal(result, alone[place % 8])


class Interrupts(Keeps):
    """A defence during whose third call the user presses Ctrl-C."""

    def __init__(self):
        self.calls = 0

    def __call__(self, scores):
        self.calls += 1
        if self.calls == 3:
            signal.raise_signal(signal.SIGINT)
        return scores


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_certify_within_two_batches(framework):
    """In Flax where something keeps the votes on the host: a program of JAX goes on to its end."""
    defence = Interrupts()
    classifier = framework.smoothed(check=False, postprocessing_defences=defence)
    with pytest.raises(KeyboardInterrupt):
        classifier.certify(inputs(2), n=2**22)
    assert defence.calls <= 5
    assert classifier.certify(inputs(2), n=100)[0].shape == (2,)


@needs_proc
def test_two_thousand_predictions_leave_neither_memory_nor_threads(framework):
    x, classifier = inputs(1), framework.smoothed(sample_size=5)
    memory, threads = many_calls(lambda: classifier.predict(x))
    assert memory < 40  # 25 kB a call would be seen
    assert threads == 0
