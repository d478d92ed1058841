"""Scores of 64 bits keep their class: float32 and int32, which JAX has, cannot order all of them."""

import jax
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import bridges.pytorch
import bridges.tensorflow
import jaxsmooth

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
SCORES = {
    # in 32 bits: a tie of the first two; a negative number first; a tie of all
    "float64 far from 0": (np.array([-1e8, -1e8 + 0.5, -1e8 - 3]), 1),
    "int64 beyond 32 bits": (np.array([3_000_000_000, 1, 0]), 0),
    "float64 close to 1": (1 + 1e-12 * np.array([0.0, 1.0, 2.0]), 2),
    "int64 far from 0": (2**40 + np.array([0, 1, -1]), 1),
}


class TorchScores(nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.register_buffer("scores", torch.tensor(scores))

    def forward(self, x):
        return self.scores.expand(len(x), 3) + 0 * x[:, :1].to(self.scores.dtype)


class TensorFlowScores(tf.Module):
    def __init__(self, scores):
        super().__init__()
        self.scores = tf.Variable(scores)

    def __call__(self, x):
        return self.scores[None] + tf.zeros_like(x[:, :1], self.scores.dtype)


def classes_of(f, compiled):
    votes = jaxsmooth.certify(f, jaxsmooth.Gaussian(0.5), jax.random.key(0), X, n=100, compiled=compiled)
    return votes.label.tolist()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", SCORES)
def test_functions_of_both_frameworks(name, compiled):
    scores, label = SCORES[name]
    assert classes_of(bridges.pytorch.as_jax(TorchScores(scores)), compiled) == [label] * 3
    assert classes_of(bridges.tensorflow.as_jax(TensorFlowScores(scores)), compiled) == [label] * 3


@pytest.mark.parametrize("name", SCORES)
def test_tensors_of_a_function_that_is_called(name):
    scores, label = SCORES[name]
    module, model = TorchScores(scores), TensorFlowScores(scores)
    assert classes_of(lambda x: module(torch.tensor(np.asarray(x))), compiled=False) == [label] * 3
    assert classes_of(lambda x: model(tf.constant(np.asarray(x))), compiled=False) == [label] * 3


@pytest.mark.parametrize("name", SCORES)
def test_classes_of_both_frameworks(name):
    scores, label = SCORES[name]
    settings = {"scale": 0.5, "seed": 0}
    torch_class = bridges.pytorch.PyTorchRandomizedSmoothing(
        TorchScores(scores), nn.CrossEntropyLoss(), (4,), 3, **settings
    )
    tensorflow_class = bridges.tensorflow.TensorFlowV2RandomizedSmoothing(TensorFlowScores(scores), 3, (4,), **settings)
    for classifier in (torch_class, tensorflow_class):
        assert classifier.certify(X, n=100)[0].tolist() == [label] * 3
        assert classifier.predict(X).argmax(axis=1).tolist() == [label] * 3


def test_other_outputs_are_only_cast():
    x = X.astype(np.complex128)
    assert bridges.pytorch.transfer.narrowed(torch.tensor(x), torch.complex64).dtype == torch.complex64
    assert bridges.tensorflow.transfer.narrowed(tf.constant(x), tf.complex64).dtype == tf.complex64
    none = np.zeros((2, 0))
    assert bridges.pytorch.transfer.narrowed(torch.tensor(none), torch.float32).shape == (2, 0)
    assert bridges.tensorflow.transfer.narrowed(tf.constant(none), tf.float32).shape == (2, 0)


def test_scores_stay_what_they_are_up_to_one_step():
    scores = np.random.default_rng(1).normal(size=(50, 4))
    scores[:, 1] = scores[:, 0] + 1e-12
    ours = [
        bridges.pytorch.transfer.narrowed(torch.tensor(scores), torch.float32).numpy(),
        bridges.tensorflow.transfer.narrowed(tf.constant(scores), tf.float32).numpy(),
    ]
    for narrow in ours:
        assert narrow.dtype == np.float32
        np.testing.assert_array_max_ulp(narrow, scores.astype(np.float32), 1)
        np.testing.assert_array_equal(narrow.argmax(axis=1), scores.argmax(axis=1))
    # A score that is not a number stays so: its row is no vote.
    strange = np.array([[np.nan, 1.0], [np.inf, 1.0]])
    np.testing.assert_array_equal(bridges.pytorch.transfer.narrowed(torch.tensor(strange), torch.float32), strange)
    np.testing.assert_array_equal(bridges.tensorflow.transfer.narrowed(tf.constant(strange), tf.float32), strange)
