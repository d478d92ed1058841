"""Curves against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxsmooth import (
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_bound,
    most_false_certificates,
)

PREDICTED, RADIUS, TRUTH = [1, 0, -1, 2, 3], [0.5, 0.25, 0.0, 0.9, 0.0], [1, 0, -1, 0, 3]


def test_certified_accuracy_counts_right_classes_at_the_radius_or_above():
    accuracy = certified_accuracy(PREDICTED, RADIUS, TRUTH, [0.0, 0.25, 0.26, 0.5, 0.51])
    np.testing.assert_array_equal(accuracy, [0.6, 0.4, 0.2, 0.2, 0.0])
    assert certified_accuracy(PREDICTED, RADIUS, TRUTH, 0.25).shape == ()


def test_average_certified_radius_counts_errors_and_abstentions_as_zero():
    assert average_certified_radius(PREDICTED, RADIUS, TRUTH) == 0.15


@given(st.integers(0, 5000), st.floats(1e-5, 0.3), st.floats(1e-6, 0.3))
def test_most_false_certificates_is_the_quantile_of_the_binomial(number, alpha, delta):
    most = most_false_certificates(number, alpha, delta)
    assert stats.binom.sf(most, number, alpha) <= delta * (1 + 1e-9)
    assert most == 0 or stats.binom.sf(most - 1, number, alpha) >= delta * (1 - 1e-9)


def test_the_bound_takes_off_as_many_inputs():
    predicted, radius, truth = [1] * 500, np.linspace(0, 1, 500), [1] * 500
    accuracy = certified_accuracy(predicted, radius, truth, [0.0, 0.5, 0.999, 2.0])
    bound = certified_accuracy_bound(predicted, radius, truth, [0.0, 0.5, 0.999, 2.0], alpha=0.001)
    np.testing.assert_allclose(bound, np.maximum(accuracy - 4 / 500, 0), atol=1e-12)


def test_abstention_rate():
    assert abstention_rate(PREDICTED) == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "vectors of one length, at least 1"),
        (([1], [0.5, 0.1], [1]), "vectors of one length"),
        (([[1]], [[0.5]], [[1]]), "vectors of one length"),
        (([1], [-0.5], [1]), "radius must not be negative or NaN"),
        (([1], [np.nan], [1]), "radius must not be negative or NaN"),
    ],
)
def test_refuses_what_is_no_set_of_certificates(arguments, message):
    with pytest.raises(ValueError, match=message):
        certified_accuracy(*arguments, [0.0])
    with pytest.raises(ValueError, match=message):
        average_certified_radius(*arguments)


def test_refuses_radii_that_are_not_numbers():
    with pytest.raises(ValueError, match="radii must be numbers"):
        certified_accuracy(PREDICTED, RADIUS, TRUTH, [0.0, np.nan])
    with pytest.raises(ValueError, match="predicted must be a vector"):
        abstention_rate([])
