"""How many rows go where: the caller's bound holds for every call of the network, and few sizes are compiled for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.batches import CPU, GPU, Limits, few_sizes, plan_gradients, plan_votes, rows_drawn
from tests.bridges.frameworks import PyTorch, TensorFlow
from tests.bridges.reference import Keeps, calls, inputs, labels, limit_rows
from tests.programs import compiled_programs

LIMITS = st.sampled_from([CPU, GPU, CPU._replace(least=32), Limits(2**10, 2**10, 7)])
SIZES = st.integers(1, 2**20)


@given(SIZES, SIZES, SIZES, LIMITS, st.none() | SIZES, st.booleans())
def test_votes_stay_within_the_limits(samples, features, widest, limits, batch_size, even):
    rows, drawn = plan_votes(samples, features, widest, limits, batch_size, even=even)
    assert 1 <= rows <= min(limits.rows, batch_size or limits.rows)
    # The outputs of the widest layer are as many as allowed, but for the few rows that make a batch in any case.
    assert rows <= max(32, limits.layer_values // max(features, widest))
    assert drawn >= 1
    assert drawn % rows == 0 or drawn < rows
    assert drawn <= max(rows, 2**21 // features, limits.least)


@given(st.integers(1, 2**10), st.integers(1, 2**10), SIZES, SIZES, LIMITS)
def test_all_copies_of_an_input_share_a_call_where_they_fit(number, n, features, widest, limits):
    rows = plan_gradients(number, n, features, widest, limits)
    most = min(limits.rows, max(32, limits.gradient_values // max(features, widest)))
    assert 1 <= rows <= most
    assert (rows % n == 0) == (n <= most) or rows == n


def test_few_sizes_are_drawn():
    """2^k and 3 * 2^k are two sizes between powers of two; the even parts of `certify` are 16."""
    numbers = range(1, 20_000)
    octaves = math.ceil(math.log2(20_000))
    assert len({few_sizes(number) for number in numbers}) <= 2 * octaves
    assert len({rows_drawn(number, 4096, 784) for number in numbers}) <= 2 * octaves
    for even, sizes in ((False, 2), (True, 16)):
        drawn = {plan_votes(number, 16, 16, CPU, None, even=even).drawn for number in numbers}
        assert len(drawn) <= sizes * octaves


@pytest.mark.parametrize("defence", [None, Keeps()], ids=["plain", "on the host"])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_no_call_of_the_network_gets_more_rows_than_the_caller_allows(framework, batch_size, defence):
    x, settings = inputs(3), {"sample_size": 30, "postprocessing_defences": defence}
    model, seen = framework.watch(framework.network())
    bounded = framework.smoothed(model, **settings)
    free_model, freely_seen = framework.watch(framework.network())
    free = framework.smoothed(free_model, **settings)
    np.testing.assert_array_equal(bounded.certify(x, 90, batch_size), free.certify(x, 90))
    np.testing.assert_array_equal(bounded.predict(x, batch_size, False), free.predict(x))
    rows, chosen = (list(map(len, calls(batches))) for batches in (seen, freely_seen))
    assert max(rows) <= batch_size
    assert min(sum(rows), sum(chosen)) >= 3 * (30 + 90 + 30)
    assert max(chosen) > 64  # what the bound keeps away


@pytest.mark.parametrize(
    ("framework", "method", "shape"),
    [
        (PyTorch, "certify", (1, 3, 5)),
        (TensorFlow, "predict", (1, 7, 3)),
    ],
    ids=lambda value: getattr(value, "name", value) if not isinstance(value, tuple) else "",
)
def test_another_number_of_inputs_compiles_nothing_once_the_sizes_drawn_are_known(framework, method, shape):
    """No other test has compiled for these shapes.

    `certify` draws even parts, one of 16 sizes between powers of two: 6 numbers of inputs draw 6 sizes. `predict` draws
    2^k or 3 * 2^k.
    """
    classifier = framework.smoothed(framework.linear(shape), input_shape=shape, check=False)
    x = np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)
    framework.smoothed().certify(inputs(1), 10)  # some parts are compiled once
    arguments, votes, even = ((200,), 50 + 200, True) if method == "certify" else ((), 50, False)
    drawn = {plan_votes(votes * number, math.prod(shape), 0, CPU, None, even=even).drawn for number in range(1, 7)}
    with compiled_programs() as programs:
        results = [getattr(classifier, method)(x[:number], *arguments) for number in range(1, 7)]
    # A program draws flat rows, and another gives them their shape.
    assert len(programs) == 2 * len(drawn) == 2 * {"certify": 6, "predict": 5}[method]
    with compiled_programs() as programs:
        for number in range(6, 0, -1):
            classifier.scale = 0.1 * number
            getattr(classifier, method)(x[:number] + 1, *arguments)
    assert programs == []
    if method == "certify":
        for number, (label, radius) in enumerate(results, 1):
            np.testing.assert_array_equal(label, results[-1][0][:number])
            np.testing.assert_array_equal(radius, results[-1][1][:number])


def test_certificates_of_many_numbers_of_inputs_compile_few_programs_and_score_samples_only(framework):
    """Attacks call with ever-changing numbers of inputs."""
    x = inputs(40)
    model, seen = framework.watch(framework.network())
    classifier = framework.smoothed(model, sample_size=30, check=False)
    label, radius = classifier.certify(x, 270)
    calls(seen)
    with compiled_programs() as programs:
        for number in range(20, 41, 2):
            again = classifier.certify(x[:number], 270)
            np.testing.assert_array_equal(again, (label[:number], radius[:number]))
            rows = sum(map(len, calls(seen)))
            if framework.package == "flax":  # it fills up what it compiles for
                assert rows >= (30 + 270) * number
            else:
                assert rows == (30 + 270) * number
    # The even parts of these 11 numbers of samples have 11 sizes, with two programs each. A size of Flax is one of 24,
    # 32 and 48 inputs, with at most four programs.
    assert len(programs) <= (12 if framework.package == "flax" else 22)


def test_gradients_of_many_numbers_of_inputs_compile_few_programs(framework):
    x = inputs(40)
    classifier = framework.smoothed(sample_size=30)
    classifier.loss_gradient(x, labels(40), sampling=True)
    with compiled_programs() as programs:
        for number in range(20, 41, 2):
            gradient = classifier.loss_gradient(x[:number], labels(number), sampling=True)
            assert gradient.shape == x[:number].shape
    # 24, 32 and 48 inputs, with at most five programs each: of 11 numbers, each would have some of its own.
    assert len(programs) <= 15


def test_predictions_for_many_numbers_of_inputs_compile_few_programs(framework):
    classifier, x = framework.smoothed(), inputs(40)
    classifier.predict(x)
    with compiled_programs() as programs:
        for number in range(1, 41):
            classifier.predict(x[:number])
    # 1, 2, 3, 4, 6, 8, 12, 16, 24 and 32 inputs, or as many sizes of samples; with two programs each, in Flax with at
    # most three.
    assert len(programs) <= (30 if framework.package == "flax" else 20)
    with compiled_programs() as programs:
        for number in range(1, 41):
            classifier.predict(x[:number])
    assert programs == []


@pytest.mark.parametrize("rows", [1024, 50, 7])
def test_batches_of_gradients_hold_what_the_limits_allow(framework, rows, monkeypatch):
    limit_rows(framework.backend, rows, monkeypatch)
    model, seen = framework.watch(framework.network())
    classifier = framework.smoothed(model, sample_size=20)
    classifier.predict(inputs(6))
    calls(seen)
    classifier.class_gradient(inputs(6), 1, sampling=True)
    # All copies of all inputs, those of two inputs, or a third of those of one.
    expected = {1024: [120], 50: [40] * 3, 7: [7] * 17 + [1]}[rows]
    sizes = list(map(len, calls(seen)))
    if framework.package == "flax":  # it fills up what it compiles for
        expected *= 2  # a pass for the average, which the compiler leaves out where nobody watches the network
        assert len(sizes) == len(expected)
        assert all(least <= size <= rows for least, size in zip(expected, sizes, strict=True))
    else:
        assert sizes == expected
