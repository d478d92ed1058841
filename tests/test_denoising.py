"""Denoise, then classify: the known steps of diffusion models, a closed form, and how denoisers are trained."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.tree_util import Partial
from scipy import stats

from jaxsmooth import (
    Denoised,
    Gaussian,
    Laplace,
    RandomClassifier,
    certify,
    certify_dataset,
    cosine_schedule,
    denoised,
    diffusion_step,
    key_of_seed,
    linear_schedule,
    losses,
    smooth,
    stream_samples,
)
from jaxsmooth._claims import identity
from jaxsmooth.training import init_train_state, make_train_step

KEY = key_of_seed(0)
SCHEDULE = linear_schedule(1000)


@pytest.mark.parametrize(
    ("schedule", "steps"), [(cosine_schedule(4000), (1158, 1984, 2809)), (SCHEDULE, (145, 259, 396))]
)
def test_steps_are_those_of_the_literature(schedule, steps):
    for sigma, t in zip((0.25, 0.5, 1.0), steps, strict=True):
        step = diffusion_step(Gaussian(sigma), schedule)
        assert step.t == t
        # The least step whose noise is not below sigma.
        before = np.sqrt((1 - schedule[t - 1]) / schedule[t - 1]) / 2
        assert before < sigma <= step.sigma
        # In the units of x: pixels from 0 to 255 under 255 times the noise are the same image.
        assert diffusion_step(Gaussian(255 * sigma), schedule, clip_values=(0, 255)).t == t


def test_the_linear_schedule_is_that_of_diffusers():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    np.testing.assert_allclose(SCHEDULE, torch.cumprod(1 - betas, 0).numpy(), rtol=1e-12)


def exact_predictor(clean, prediction, schedule=SCHEDULE):
    """A diffusion model that knows the clean image."""

    def predict(image, t):
        a = jnp.asarray(schedule, jnp.float32)[t].reshape(-1, *(1,) * (image.ndim - 1))
        noise = (image - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a)
        velocity = jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * clean
        return {"epsilon": noise, "sample": jnp.broadcast_to(clean, image.shape), "v_prediction": velocity}[prediction]

    return predict


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (-3.0, 5.0)])
def test_one_step_of_denoising_inverts_what_the_model_predicts(prediction, span):
    low, high = span
    x = low + (high - low) * jax.random.uniform(jax.random.key(1), (4, 3, 2))
    noisy = x + 0.5 * jax.random.normal(jax.random.key(2), x.shape)
    clean = 2 * (x - low) / (high - low) - 1
    model = denoised(
        lambda x: x.reshape(4, -1),
        exact_predictor(clean, prediction),
        Gaussian(0.5),
        schedule=SCHEDULE,
        prediction=prediction,
        clip_values=span,
    )
    np.testing.assert_allclose(model.denoise(noisy), x, atol=2e-5 * (high - low))
    seen = model.step.noisy_image(noisy)
    expected = np.sqrt(model.step.a) * (2 * (noisy - low) / (high - low) - 1)
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


def test_clean_images_are_clipped_and_a_learned_variance_is_left_out():
    x = jnp.full((2, 4, 4, 3), 0.7)

    def far(image, t):
        assert t.dtype == jnp.int32
        assert t.shape == (2,)
        return jnp.concatenate([-100 * jnp.ones_like(image), 7 * jnp.ones_like(image)], axis=-1)

    model = denoised(lambda x: x[:, 0, 0], far, Gaussian(0.25), schedule=SCHEDULE)
    np.testing.assert_array_equal(model.denoise(x), jnp.ones_like(x))


def test_the_sigma_of_a_step_leads_to_that_step():
    for schedule in (SCHEDULE, cosine_schedule(4000)):
        for t in (1, 145, 500, len(schedule) - 2):
            sigma = float(np.sqrt((1 - schedule[t]) / schedule[t]) / 2)
            assert diffusion_step(Gaussian(sigma), schedule).t == t
            assert diffusion_step(Gaussian(np.float32(sigma)), schedule).t == t


def test_a_schedule_may_end_without_signal():
    schedule = np.append(SCHEDULE[:-1], 0.0)
    assert diffusion_step(Gaussian(0.5), schedule).t == 259
    with pytest.raises(ValueError, match="noise must be at most that of the schedule's last step, 7"):
        diffusion_step(Gaussian(1000.0), schedule)


@pytest.mark.parametrize(
    "wrap",
    [lambda out: {"sample": out}, lambda out: (out, None), lambda out: SimpleNamespace(sample=out), lambda out: out],
)
def test_what_diffusion_models_return_is_read(wrap):
    x = jnp.full((2, 3), 0.4)
    plain = denoised(linear, lambda image, _: 0.2 * image, Gaussian(0.5), schedule=SCHEDULE)
    wrapped = denoised(linear, lambda image, _: wrap(0.2 * image), Gaussian(0.5), schedule=SCHEDULE)
    np.testing.assert_array_equal(plain(x), wrapped(x))
    with pytest.raises(TypeError, match="denoiser must return an array"):
        denoised(linear, lambda *_: {"noise": 0.0}, Gaussian(0.5), schedule=SCHEDULE)(x)


@pytest.mark.parametrize("classifier", [lambda x: x[:, 0], lambda x: x[:, :1], lambda x: x[:, None]])
def test_stability_needs_scores(classifier):
    with pytest.raises(ValueError, match="scores"):
        losses.denoising_stability(shrink, Gaussian(0.5), KEY, jnp.ones((4, 3)), classifier=classifier)


PRIOR = 0.7
SIGMA = 0.5


def shrink(x):
    """The best linear denoiser for a Gaussian prior N(0, PRIOR^2)."""
    return x * PRIOR**2 / (PRIOR**2 + SIGMA**2)


def linear(x):
    return jnp.stack([x[:, 0] - 0.2, 0.2 - x[:, 0]], axis=1)


def test_radii_are_never_above_the_exact_ones_and_near_them():
    """Behind the denoiser the border is at 0.2 / gain of x: the exact radius is the distance to it."""
    x = np.random.default_rng(0).normal(0, PRIOR, (400, 3)).astype(np.float32)
    exact = np.abs(x[:, 0] - 0.2 * (PRIOR**2 + SIGMA**2) / PRIOR**2)
    result = certify(denoised(linear, shrink), Gaussian(SIGMA), KEY, x, n=5000, alpha=0.001, batch_size=4096)
    # Binomial of probability at most alpha: an alarm is false with probability below 1e-6.
    assert (result.radius > exact).sum() <= stats.binom.isf(1e-6, len(x), 0.001)
    near = (exact > 0.1) & (exact < 1.5)
    assert (np.asarray(result.radius)[near] > 0.5 * exact[near]).all()
    assert (np.asarray(result.radius)[near] / exact[near]).mean() > 0.85
    # The border of the classifier alone is another one: the denoiser is not left out.
    alone = np.abs(x[:, 0] - 0.2)
    assert (np.asarray(result.radius) > alone).sum() > 50


def test_noise_is_added_before_the_denoiser():
    seen = []

    def denoiser(x):
        seen.append(np.asarray(x))
        return jnp.zeros_like(x)

    x = np.full((1, 3), 5.0, np.float32)
    certify(denoised(linear, denoiser), Gaussian(SIGMA), KEY, x, n0=8, n=8, batch_size=16, compiled=False)
    assert 0.2 < np.concatenate(seen)[:, 0].std() < 1.0


def test_it_is_a_pytree_whose_arrays_are_traced_and_identified(tmp_path):
    traces = []

    def scaled(scale, x):
        traces.append(1)
        return scale * x

    x = jnp.ones((2, 3))
    run = jax.jit(lambda f, x: f(x))
    a, b = (denoised(Partial(linear), Partial(scaled, jnp.float32(scale))) for scale in (0.5, 2.0))
    np.testing.assert_allclose(run(a, x), linear(0.5 * x))
    np.testing.assert_allclose(run(b, x), linear(2 * x))
    assert len(traces) == 1
    assert identity(a) != identity(b)
    predict = Partial(lambda scale, image, _: scale * image, jnp.float32(0.1))
    at = [denoised(linear, predict, Gaussian(sigma), schedule=SCHEDULE) for sigma in (0.25, 0.5)]
    assert identity(at[0]) != identity(at[1])
    gradient = jax.grad(lambda x: smooth(at[0], Gaussian(0.25), n=8)(KEY, x)[0, 0])(x)
    assert np.isfinite(gradient).all()
    data = np.ones((2, 3), np.float32), np.zeros(2, int)
    path = tmp_path / "run.tsv"
    certify_dataset(a, Gaussian(0.25), KEY, data, path, progress=False)
    with pytest.raises(ValueError, match="classifier"):
        certify_dataset(b, Gaussian(0.25), KEY, data, path, progress=False)


def test_a_random_classifier_keeps_its_keys():
    def f(x, keys):
        kept = jax.vmap(lambda key, row: jax.random.bernoulli(key, 0.9, row.shape))(keys, x)
        return linear(jnp.where(kept, x, 0))

    model = denoised(RandomClassifier(f), shrink)
    assert isinstance(model, RandomClassifier)
    assert isinstance(model.f, Denoised)
    assert certify(model, Gaussian(SIGMA), KEY, jnp.full((1, 3), 2.0), n=500).label[0] == 0


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"f": 3}, TypeError, "f must be a callable"),
        ({"denoiser": None}, TypeError, "denoiser must be a function"),
        ({"denoiser": RandomClassifier(lambda x, _: x)}, TypeError, "makes a RandomClassifier of the whole"),
        ({"noise": None}, ValueError, "noise must be given with a schedule"),
        ({"schedule": None}, ValueError, "noise must be left out without a schedule"),
        ({"schedule": None, "noise": None, "prediction": "sample"}, ValueError, "prediction must be left out"),
        ({"schedule": None, "noise": None, "clip_values": (0, 255)}, ValueError, "clip_values must be left out"),
        ({"noise": Laplace(0.5)}, TypeError, "noise must be Gaussian"),
        ({"noise": 0.5}, TypeError, "noise must be"),
        ({"noise": Gaussian(100.0)}, ValueError, "noise must be at most that of the schedule's last step"),
        ({"prediction": "noise"}, ValueError, "prediction"),
        ({"clip_values": (1, 0)}, ValueError, "clip_values"),
        ({"clip_values": 255}, ValueError, "clip_values"),
        ({"schedule": SCHEDULE[::-1]}, ValueError, "in the order of t"),
        ({"schedule": SimpleNamespace(config={}, sigmas=[1.0])}, TypeError, "schedule must have alphas_cumprod"),
        ({"denoiser": torch.nn.Identity()}, TypeError, r"a PyTorch module, Identity: bridges.pytorch.as_jax"),
        ({"schedule": np.linspace(1e-4, 0.02, 1000)}, ValueError, "not alphas or betas"),
        ({"schedule": [[0.9, 0.5]]}, ValueError, "schedule must be"),
        ({"schedule": "cosine"}, TypeError, "schedule must be"),
    ],
)
def test_what_is_not_as_described_is_refused(change, error, match):
    arguments = {
        "f": linear,
        "denoiser": lambda image, _: image,
        "noise": Gaussian(0.5),
        "schedule": SCHEDULE,
        **change,
    }
    places = [arguments.pop(name) for name in ("f", "denoiser", "noise")]
    with pytest.raises(error, match=match):
        denoised(*places, **arguments)


@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x.sum(), lambda _: None])
def test_a_denoiser_that_returns_another_shape_is_refused(wrong):
    with pytest.raises(ValueError, match="denoiser must return clean inputs of the shape of x"):
        denoised(linear, wrong)(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="denoiser must return the shape of its image"):
        denoised(linear, lambda image, _: image[:, :1], Gaussian(0.5), schedule=SCHEDULE)(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="denoiser must return clean inputs of the shape of x"):
        losses.denoising(lambda x: x[:, :1], Gaussian(0.5), KEY, jnp.ones((2, 3)))


def training_noise(x):
    """The noise that an objective draws under this key."""
    return np.asarray(Gaussian(SIGMA).sample(KEY, (1, *x.shape)))[0]


def test_the_losses_are_their_formulas():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    noisy = x + training_noise(x)
    value = losses.denoising(shrink, Gaussian(SIGMA), KEY, x)
    np.testing.assert_allclose(value, np.mean((np.asarray(shrink(noisy)) - np.asarray(x)) ** 2), rtol=1e-6)
    stability = losses.denoising_stability(shrink, Gaussian(SIGMA), KEY, x, classifier=linear)
    scores = np.asarray(linear(shrink(noisy)), np.float64)
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    labels = np.asarray(linear(x)).argmax(axis=1)
    np.testing.assert_allclose(stability, -log_p[np.arange(6), labels].mean(), rtol=1e-5)


def test_a_denoiser_learns_the_best_linear_one():
    """Under a Gaussian prior the squared error is least at the known gain."""
    optimizer = optax.adam(0.05)
    step = make_train_step(losses.denoising, optimizer)
    state = init_train_state(Partial(lambda gain, x: gain * x, jnp.float32(1.0)), optimizer)
    rng = np.random.default_rng(0)
    for _ in range(200):
        x = rng.normal(0, PRIOR, (512, 4)).astype(np.float32)
        state, _ = step(state, Gaussian(SIGMA), KEY, x, np.zeros(512, np.int32))
    (gain,) = jax.tree.leaves(state.f)
    np.testing.assert_allclose(gain, PRIOR**2 / (PRIOR**2 + SIGMA**2), atol=0.02)


def test_stability_trains_the_denoiser_and_not_the_classifier():
    loss = functools.partial(losses.denoising_stability, classifier=linear)
    optimizer = optax.sgd(1.0)
    step = make_train_step(loss, optimizer)
    state = init_train_state(Partial(lambda gain, x: gain * x, jnp.float32(0.1)), optimizer)
    x = np.full((64, 3), 1.0, np.float32)
    values = []
    for _ in range(20):
        state, value = step(state, Gaussian(0.1), KEY, x, np.zeros(64, np.int32))
        values.append(float(value))
    assert values[-1] < values[0] / 2


def test_rows_of_the_denoiser_belong_to_their_inputs():
    """The votes are those of the denoised samples of each input."""
    x = np.array([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]], np.float32)
    model = denoised(linear, shrink)
    votes = certify(model, Gaussian(SIGMA), KEY, x, n0=5, n=50).votes
    counts = np.zeros((2, 2), int)
    from jaxsmooth import decision_keys

    for noisy, rows in stream_samples(Gaussian(SIGMA), decision_keys(KEY)[1], x, n=50):
        classes = np.asarray(linear(shrink(noisy))).argmax(axis=1)
        for row in (0, 1):
            counts[row] += np.bincount(classes[rows == row], minlength=2)
    np.testing.assert_array_equal(votes.counts, counts)
