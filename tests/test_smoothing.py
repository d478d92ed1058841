"""The smoothed classifier: the samples of count_votes, and gradients with the known mean and covariance."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from jaxsmooth import Gaussian, Laplace, class_gradients, count_votes, cross_entropy, smooth, stream_samples
from tests.classifiers import assert_same, first_features, half_space, inputs, scaled_features

N = 37
ESTIMATORS = ["pathwise", "score"]


def probit(weights, x):
    """Log-probabilities whose first is log Phi(<w, x>): the smoothed one is Phi(<w, x> / sqrt(1 + sigma^2 |w|^2))."""
    margin = x @ weights
    return jnp.stack([jax.scipy.stats.norm.logcdf(margin), jax.scipy.stats.norm.logcdf(-margin)], axis=1)


@pytest.mark.parametrize("batch_size", [4, 37, 50, 1000])
def test_it_averages_over_the_samples_that_are_voted_on(key, batch_size):
    x, noise = inputs(3), Gaussian(0.7)
    expected = np.zeros((3, 3))
    for noisy, rows in stream_samples(noise, key, x, n=N, ids=[4, 1, 9], first=5):
        real = np.asarray(rows) < 3
        np.add.at(expected, np.asarray(rows)[real], np.asarray(jax.nn.softmax(first_features(noisy)))[real] / N)
    g = smooth(first_features, noise, n=N, batch_size=batch_size, ids=[4, 1, 9], first=5)
    np.testing.assert_allclose(g(key, x), expected, atol=1e-6)


def test_hard_votes_are_the_counts(key):
    x, noise = inputs(4), Gaussian(1.0)
    g = smooth(first_features, noise, n=N, estimator="score", hard=True)
    np.testing.assert_allclose(g(key, x) * N, count_votes(first_features, noise, key, x, n=N), atol=1e-4)


def test_the_pathwise_gradient_is_that_of_the_average(key):
    """Against plain differentiation of the mean over the same samples, in x, in the parameters and in sigma."""
    x, weights = inputs(3), jnp.array([1.0, -0.5, 2.0])

    def direct(weights, sigma, x):
        noise = jnp.concatenate([e for e, _ in stream_samples(Gaussian(1.0), key, jnp.zeros_like(x), n=N)])[: 3 * N]
        noisy = jnp.repeat(x, N, axis=0) + sigma * noise
        p = jax.nn.softmax(scaled_features(weights, noisy)).reshape(3, N, 3).mean(1)
        return (p[:, 0] ** 2).sum()

    def ours(weights, sigma, x):
        g = smooth(Partial(scaled_features, weights), Gaussian(sigma), n=N, batch_size=10)
        return (g(key, x)[:, 0] ** 2).sum()

    expected = jax.grad(direct, (0, 1, 2))(weights, 0.6, x)
    chex.assert_trees_all_close(jax.grad(ours, (0, 1, 2))(weights, 0.6, x), expected, atol=1e-5)
    chex.assert_trees_all_close(jax.jit(jax.grad(ours, (0, 1, 2)))(weights, 0.6, x), expected, atol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_are_unbiased_with_the_known_covariance(estimator):
    """Linear classifiers under a probit link. The test of mean and covariance fails falsely at a rate of 1e-6."""
    weights, sigma, runs, n = jnp.array([0.8, -0.4, 0.3]), 0.7, 4000, 8
    x = jnp.array([[0.5, 0.2, -0.3]])
    w, at = np.asarray(weights, float), np.asarray(x[0], float)
    spread = np.sqrt(1 + sigma**2 * (w @ w))
    truth = w / spread * stats.norm.pdf(w @ at / spread)
    g = smooth(Partial(probit, weights), Gaussian(sigma), n=n, estimator=estimator)
    keys = jax.random.split(jax.random.key(3), runs)
    gradients = np.asarray(jax.jit(jax.vmap(jax.grad(lambda x, key: g(key, x)[0, 0]), (None, 0)))(x, keys))[:, 0]

    # Hotelling's statistic of the mean is chi-squared to good accuracy at 4,000 runs. Every pathwise gradient is a
    # multiple of w, so that its covariance has rank 1.
    rank = {"pathwise": 1, "score": 3}[estimator]
    difference, covariance = gradients.mean(0) - truth, np.cov(gradients.T)
    assert np.linalg.matrix_rank(covariance, tol=1e-9) == rank
    distance = runs * difference @ np.linalg.pinv(covariance, rcond=1e-6) @ difference
    assert distance < stats.chi2.isf(0.5e-6, rank)
    outside = difference - np.linalg.pinv(covariance, rcond=1e-6) @ covariance @ difference
    np.testing.assert_allclose(outside, 0, atol=1e-5)

    # The variance along w by quadrature of the margin u ~ N(<w, x>, (sigma |w|)^2).
    nodes, masses = np.polynomial.hermite_e.hermegauss(200)
    masses /= masses.sum()
    length = np.sqrt(w @ w)
    p = stats.norm.cdf(w @ at + sigma * length * nodes)
    if estimator == "pathwise":
        slope = length * stats.norm.pdf(w @ at + sigma * length * nodes)
        along = (masses @ slope**2 - (masses @ slope) ** 2) / n
    else:  # of the mean of (h - mean) z n/(n-1): a sample covariance of h and z, whose variance is known
        mean = masses @ p
        product = masses @ ((p - mean) * nodes)
        fourth = masses @ (((p - mean) * nodes) ** 2)
        along = ((fourth - product**2) / n + ((masses @ (p - mean) ** 2) + product**2) / (n * (n - 1))) / sigma**2
    projected = gradients @ (w / length)
    error = np.sqrt(np.mean((projected - projected.mean()) ** 4) - projected.var() ** 2) / np.sqrt(runs)
    assert abs(projected.var(ddof=1) - along) < stats.norm.isf(0.25e-6) * error


def test_the_gradient_of_hard_votes_is_that_of_the_smoothed_classifier(key):
    """Half spaces: the derivative of Phi(x / sigma) in x, six standard errors of the estimate allowed (rate 2e-9)."""
    sigma, n = 0.5, 40_000
    g = smooth(half_space, Gaussian(sigma), n=n, estimator="score", hard=True)
    gradient = jax.grad(lambda x: g(key, x)[0, 0])(jnp.array([[0.2, 3.0]]))
    truth = [stats.norm.pdf(0.4) / sigma, 0.0]
    # |h - b| <= 1 and z has unit variance.
    np.testing.assert_allclose(gradient[0], truth, atol=6 / (sigma * np.sqrt(n)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_transformations_give_the_same_gradients(key, estimator):
    x, noise = inputs(4), Gaussian(0.5)
    g = smooth(first_features, noise, n=N, batch_size=16, estimator=estimator)
    jacobian = jax.jacrev(lambda x: g(key, x))(x)
    per_class = class_gradients(g, key, x)
    assert per_class.shape == (4, 3, 5)
    for i in range(4):
        np.testing.assert_allclose(jacobian[i, :, i], per_class[i], atol=1e-6)
        assert not jacobian[i][:, [j for j in range(4) if j != i]].any()
    labels = jnp.array([0, 2, 1, 1])
    np.testing.assert_allclose(class_gradients(g, key, x, labels)[:, 0], per_class[jnp.arange(4), labels], atol=1e-6)
    both = jax.vmap(lambda x: jax.grad(lambda x: g(key, x)[:, 1].sum())(x))(jnp.stack([x, x + 1]))
    np.testing.assert_allclose(both[0], per_class[:, 1], atol=1e-6)
    mapped = jax.lax.map(lambda x: jax.grad(lambda x: g(key, x)[:, 1].sum())(x), jnp.stack([x, x + 1]))
    np.testing.assert_allclose(mapped, both, atol=1e-6)


def test_one_compilation_serves_every_sigma_key_and_parameter(key):
    traces = []

    def counted(weights, x):
        traces.append(1)
        return scaled_features(weights, x)

    def gradient(sigma, weights, key, x):
        return jax.grad(lambda x: smooth(Partial(counted, weights), Gaussian(sigma), n=N)(key, x)[:, 0].sum())(x)

    gradient(0.5, jnp.ones(3), key, inputs(3))
    before = len(traces)
    gradient(0.7, jnp.zeros(3), jax.random.key(1), inputs(3, seed=1))
    assert len(traces) == before


def test_scores_that_are_not_finite_add_to_no_class(key):
    def broken(x):
        return jnp.where(x[:, :1] > 0, jnp.nan, x[:, :2])

    x = jnp.zeros((2, 3))
    counts = count_votes(broken, Gaussian(1.0), key, x, n=N)
    for estimator in ESTIMATORS:
        g = smooth(broken, Gaussian(1.0), n=N, estimator=estimator)
        np.testing.assert_allclose(g(key, x).sum(1), counts.sum(1) / N, atol=1e-5)
        assert jnp.isfinite(jax.grad(lambda x, g=g: g(key, x)[:, 0].sum())(x)).all()


def test_the_memory_of_the_backward_pass_does_not_grow_with_n(key):
    """The compiled program's own account of its temporary memory; a layer of 100,000 values shows what is kept."""
    wide = jnp.ones((5, 100_000))

    def memory(n):
        g = smooth(lambda x: jnp.tanh(x @ wide)[:, :3], Gaussian(0.5), n=n, batch_size=16)
        compiled = jax.jit(jax.grad(lambda x: g(key, x)[:, 0].sum())).lower(jnp.zeros((2, 5))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # 512 and 16 chunks: few ones are compiled without a loop, their memory at the same time.
    assert memory(4096) < memory(128) + 2**20


def test_cross_entropy():
    p = jnp.array([[0.25, 0.75], [0.0, 1.0]])
    np.testing.assert_allclose(cross_entropy(p, jnp.array([1, 0])), -np.log([0.75, 1e-20]), rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda p: cross_entropy(p, jnp.array([1, 0])).sum())(p)).all()


def test_no_inputs(key):
    x = jnp.zeros((0, 5))
    for estimator in ESTIMATORS:
        g = smooth(first_features, Gaussian(1.0), n=N, estimator=estimator)
        assert g(key, x).shape == (0, 3)
        assert jax.grad(lambda x, g=g: g(key, x).sum())(x).shape == (0, 5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must"),
        ({"n": 1, "estimator": "score"}, ValueError, "n must"),
        ({"batch_size": 0}, ValueError, "batch_size must"),
        ({"estimator": "reinforce"}, ValueError, "estimator must"),
        ({"hard": True}, ValueError, "estimator='score'"),
        ({"noise": Laplace(1.0), "estimator": "score"}, TypeError, "Gaussian noise"),
        ({"f": 3}, TypeError, "f must"),
    ],
)
def test_arguments_are_checked(key, changes, error, message):
    arguments = {"f": first_features, "noise": Gaussian(1.0), "n": N, **changes}
    with pytest.raises(error, match=message):
        smooth(arguments.pop("f"), arguments.pop("noise"), **arguments)(key, inputs(2))


@pytest.mark.parametrize("y", [[0], [[0], [1]], [0, 2], [-1, 0]])
def test_labels_are_checked(y):
    with pytest.raises(ValueError, match="y must"):
        cross_entropy(jnp.full((2, 2), 0.5), jnp.array(y))
    with pytest.raises(TypeError, match="integers"):
        cross_entropy(jnp.full((2, 2), 0.5), jnp.array([0.0, 1.0]))


def test_results_repeat(key):
    g = smooth(first_features, Gaussian(1.0), n=N)
    first, second = g(key, inputs(3)), g(key, inputs(3))
    if jax.default_backend() == "cpu":
        assert_same(first, second)
    else:  # a GPU adds the samples in another order each time
        np.testing.assert_allclose(first, second, rtol=1e-6)


def test_second_derivatives_follow_f_or_are_refused():
    """The Hessian of the pathwise estimate against differences of its gradient, under the same key."""
    f = Partial(lambda w, x: jnp.tanh(x) @ w, jax.random.normal(jax.random.key(1), (5, 3)))
    x, key = inputs(1), jax.random.key(0)
    g = smooth(f, Gaussian(0.5), n=50)

    def slope(x):
        return jax.grad(lambda x: g(key, x)[0, 0])(x)

    hessian = jax.hessian(lambda x: g(key, x)[0, 0])(x)[0, :, 0]
    step = 1e-2
    for axis, move in enumerate(np.eye(5, dtype=np.float32)[:, None] * step):
        np.testing.assert_allclose(hessian[axis], (slope(x + move) - slope(x - move))[0] / (2 * step), atol=1e-3)
    for hard in (False, True):
        score = smooth(f, Gaussian(0.5), n=50, estimator="score", hard=hard)
        with pytest.raises(NotImplementedError, match="second derivatives are not available"):
            jax.hessian(lambda x, score=score: score(key, x)[0, 0])(x)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: g(key, x), (x,), (x,))


def test_the_score_estimator_refuses_what_it_has_no_gradient_in():
    """Zeros would be taken for gradients: a loop of training steps would run and learn nothing."""
    x, key, weights = inputs(2), jax.random.key(0), jnp.ones((5, 3))

    def loss(weights, sigma, x):
        return smooth(Partial(lambda w, x: x @ w, weights), Gaussian(sigma), n=50, estimator="score")(key, x)[0, 0]

    assert jnp.isfinite(jax.jit(jax.grad(loss, 2))(weights, 0.5, x)).all()
    for argument in (0, 1):
        for way in (jax.grad, lambda f, i: jax.jit(jax.grad(f, i))):
            with pytest.raises(NotImplementedError, match="has gradients in x only"):
                way(loss, argument)(weights, 0.5, x)
