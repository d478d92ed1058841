"""Inputs and labels in every common form, and those that are none."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bridges.inputs import as_inputs, as_labels, input_ids

VALUES = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    "x",
    [
        VALUES,
        np.array(VALUES),
        np.array(VALUES, np.float16),
        np.array(VALUES, np.uint8),
        np.array(VALUES, ">f8"),
        np.asfortranarray(VALUES),
        torch.tensor(VALUES),
        torch.tensor(VALUES, dtype=torch.bfloat16),
        torch.tensor(VALUES, requires_grad=True),
        jnp.array(VALUES),
        jnp.array(VALUES, jnp.bfloat16),
    ],
)
def test_inputs_become_float32(x):
    array = as_inputs(x, (2,))
    assert (array.dtype, array.flags.c_contiguous, array.dtype.isnative) == (np.float32, True, True)
    np.testing.assert_array_equal(array, VALUES)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0, 2.0], ValueError, r"x must have shape \[N, 2\], got \(2,\): one input is x\[None\]"),
        (np.zeros((2, 3)), ValueError, r"x must have shape \[N, 2\], got \(2, 3\)"),
        ([[0.0, np.nan]], ValueError, "x must be finite in float32, got NaN or infinity at index 0"),
        ([[0.0, 0.0], [1e300, 0.0]], ValueError, "x must be finite in float32, .* at index 1"),
        ([["a", "b"]], TypeError, "x must hold real numbers"),
        ([[None, 1.0]], TypeError, "x must hold real numbers"),
        (np.zeros((2, 2), complex), TypeError, "x must hold real numbers"),
        ([[1.0], [1.0, 2.0]], TypeError, "x must be an array of numbers"),
    ],
)
def test_inputs_that_are_none(x, error, message):
    with pytest.raises(error, match=message):
        as_inputs(x, (2,))


def test_no_inputs():
    assert as_inputs(np.zeros((0, 2)), (2,)).shape == (0, 2)
    assert input_ids(np.zeros((0, 2), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    "y",
    [[2, 0], [[2], [0]], [2.0, 0.0], [[0, 0, 1], [1, 0, 0]], [[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]], torch.tensor([2, 0])],
)
def test_labels_become_indices(y):
    labels = as_labels(y, 2, 3)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [2, 0])


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ([3, 0], ValueError, "class indices from 0 to 2, got 0 to 3"),
        ([-1, 0], ValueError, "class indices from 0 to 2"),
        ([0.5, 0], ValueError, "class indices from 0 to 2"),
        ([0], ValueError, r"y must have shape \(2,\), \(2, 1\) or \(2, 3\), got \(1,\)"),
        (np.zeros((2, 4)), ValueError, "y must have shape"),
        (np.zeros((2, 3, 1)), ValueError, "y must have shape"),
        ([[np.nan, 0, 0]] * 2, ValueError, "y must be finite"),
        (["cat", "dog"], TypeError, "y must hold class indices"),
    ],
)
def test_labels_that_are_none(y, error, message):
    with pytest.raises(error, match=message):
        as_labels(y, 2, 3)


def test_ids_name_the_content():
    x = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    ids = input_ids(x)
    assert len(set(ids.tolist())) == 1000
    np.testing.assert_array_equal(input_ids(x[::-1]), ids[::-1])
    np.testing.assert_array_equal(input_ids(np.asfortranarray(x)), ids)
