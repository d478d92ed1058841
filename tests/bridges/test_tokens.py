"""Models that take integers: a bag of embeddings in each framework, by way of the bridge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import (
    Ablation,
    Fixed,
    Replacement,
    certify,
    certify_dataset,
    check_classifier,
    key_of_seed,
    stream_votes,
)

KEY = key_of_seed(0)
TABLE = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 10, (4, 12))
NOISE = Ablation((12,), 5, mask=0)


def of_torch():
    import torch

    from bridges.pytorch import as_jax

    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.tensor(TABLE))

        def forward(self, x):
            return self.table(x).mean(dim=1)

    return as_jax(Bag())


def of_keras():
    import keras

    from bridges.tensorflow import as_jax

    table = keras.layers.Embedding(10, 3, weights=[TABLE])
    return as_jax(keras.Sequential([keras.Input((12,), dtype="int32"), table, keras.layers.GlobalAveragePooling1D()]))


def of_jax():
    return lambda x: jnp.asarray(TABLE)[x].mean(axis=1)


@pytest.fixture(params=[of_torch, of_keras], ids=["torch", "keras"])
def f(request):
    return request.param()


def test_integers_reach_the_model_as_they_are(f):
    expected = TABLE[TOKENS].mean(axis=1)
    for dtype in (np.int32, np.int64):
        tokens = jnp.asarray(TOKENS.astype(dtype))
        np.testing.assert_allclose(f(tokens), expected, atol=1e-6)
        np.testing.assert_allclose(jax.jit(f)(tokens), expected, atol=1e-6)


@pytest.mark.parametrize("noise", [NOISE, Replacement(10, 0.5)], ids=str)
def test_votes_are_those_of_the_same_function_in_jax(f, noise):
    x = np.tile(TOKENS, (1, 1))
    expected = certify(of_jax(), noise, KEY, x, n=1000)
    result = certify(f, noise, KEY, x, n=1000)
    # The mean of five numbers may differ in the last digit, and a tie with it.
    np.testing.assert_allclose(result.votes.counts, expected.votes.counts, atol=3)
    np.testing.assert_allclose(stream_votes(f, noise, KEY, x, n=1000, batch_size=64).sum(axis=1), 1000)
    check_classifier(f, x, noise=noise)


def test_a_run_over_tokens_knows_its_weights(f, tmp_path):
    data = TOKENS, np.zeros(4, int)
    rows = certify_dataset(f, NOISE, KEY, data, tmp_path / "a.tsv", mode=Fixed(n=300), progress=False)
    again = certify_dataset(f, NOISE, KEY, data, tmp_path / "a.tsv", mode=Fixed(n=300), progress=False)
    assert rows == again
    assert rows[0].settings["norm"] == "0"


def test_integers_have_no_gradient(f):
    weights = jnp.ones((3, 2))

    def loss(weights):
        return (f(jnp.asarray(TOKENS)) @ weights).sum()

    np.testing.assert_allclose(
        jax.jit(jax.grad(loss))(weights)[:, 0], TABLE[TOKENS].mean(axis=1).sum(axis=0), rtol=1e-5
    )
    (nothing,) = jax.vjp(f, jnp.asarray(TOKENS))[1](jnp.ones((4, 3)))
    assert nothing.dtype == jax.dtypes.float0
