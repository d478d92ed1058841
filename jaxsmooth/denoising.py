"""Denoise, then classify: a classifier that was never trained on noise behind a denoiser that was.

The noise is added to the caller's x, before the denoiser, so that the certificate is that of the two together and needs
no new theorem (Salman et al. 2020, arXiv:2003.01908). A diffusion model is such a denoiser: its noise predictor takes
x + noise, scaled, as its image after some step, and one step of denoising gives a clean image (Carlini et al. 2022,
arXiv:2206.10550).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsmooth._checks import as_noise
from jaxsmooth._foreign import kind_of
from jaxsmooth.arguments import as_integer, as_numbers, in_brief, is_traced, refuse_uncallable, refuse_unknown
from jaxsmooth.noise import Gaussian
from jaxsmooth.types import Noise, RandomClassifier

__all__ = ["Denoised", "DiffusionStep", "cosine_schedule", "denoised", "diffusion_step", "linear_schedule"]

PREDICTIONS = ("epsilon", "sample", "v_prediction")
"""What a diffusion model predicts: the noise, the clean image, or sqrt(a) noise - sqrt(1 - a) image."""

PIXELS = (0.0, 1.0)

_SLACK = 1e-6  # of sigma, which may have been rounded to float32: the sigma of a step leads to that step


class DiffusionStep(NamedTuple):
    """The step of a diffusion model at which its image bears as much noise as a smoothed classifier's.

    Its arithmetic takes arrays of any framework.

    Attributes:
        t: the step, counted from 0.
        a: the cumulative product of the schedule there: the model's image is sqrt(a) clean + sqrt(1 - a) noise.
        low, high: the range of the caller's x, which is [-1, 1] for the model.
        prediction: what the model predicts: one of `PREDICTIONS`.

    Example:
        >>> step = diffusion_step(Gaussian(0.5), linear_schedule(1000))
        >>> step.t, round(step.sigma, 3)
        (259, 0.502)
    """

    t: int
    a: float
    low: float = 0.0
    high: float = 1.0
    prediction: str = "epsilon"

    @property
    def sigma(self) -> float:
        """The noise of the step in the units of x. It is at least that of x, and no smaller step's is."""
        return math.sqrt((1 - self.a) / self.a) * (self.high - self.low) / 2

    def noisy_image(self, x: Any) -> Any:
        """Return the model's image from x with noise."""
        return ((x - self.low) * (2 / (self.high - self.low)) - 1) * math.sqrt(self.a)

    def clean_image(self, image: Any, output: Any) -> Any:
        """Return the clean image, to be clipped to [-1, 1], from the model's image and its output there."""
        # A model that learns the variance, too, has it in a second half of the channels.
        output = _first_half(_as_output(output), tuple(image.shape))
        if self.prediction == "sample":
            return output
        if self.prediction == "v_prediction":
            return image * math.sqrt(self.a) - output * math.sqrt(1 - self.a)
        return (image - output * math.sqrt(1 - self.a)) * (1 / math.sqrt(self.a))

    def as_x(self, clean: Any) -> Any:
        """Return a clean image in the units of x."""
        return (clean + 1) * ((self.high - self.low) / 2) + self.low


def diffusion_step(
    noise: Noise, schedule: Any, *, prediction: str | None = None, clip_values: tuple[float, float] = PIXELS
) -> DiffusionStep:
    """Return the step at which a diffusion model's image bears as much noise as x + noise, relative to its range.

    It is the least t with sqrt((1 - a_t) / a_t) >= 2 sigma / (high - low), a_t being the cumulative product of the
    schedule (Carlini et al. 2022, arXiv:2206.10550, section 4).

    Args:
        noise: `Gaussian`, in the units of x, of a concrete sigma.
        schedule: the cumulative products a_t `[T]`, decreasing, in (0, 1), the last of which may be 0; or a scheduler
            of `diffusers` that has such `alphas_cumprod`.
        prediction: "epsilon", "sample" or "v_prediction"; by default what the scheduler says, else "epsilon".
        clip_values: the range of x, two numbers.

    Raises:
        ValueError: the noise is more than that of the last step, or an argument is not as described. TypeError: the
            noise is not Gaussian.

    Example:
        >>> [diffusion_step(Gaussian(sigma), cosine_schedule(4000)).t for sigma in (0.25, 0.5, 1.0)]
        [1158, 1984, 2809]
    """
    if not isinstance(as_noise(noise), Gaussian):
        raise TypeError(f"noise must be Gaussian for a diffusion model, got {in_brief(noise)}")
    if is_traced(noise.scale):
        raise TypeError("noise must have a concrete sigma for a diffusion model: it decides which step is compiled")
    low, high = _as_range(clip_values)
    products, said = _as_products(schedule)
    prediction = said if prediction is None else prediction
    refuse_unknown("prediction", prediction, PREDICTIONS)
    sigma = 2 * float(np.asarray(noise.scale)) / (high - low)
    # A schedule that ends without any signal has an infinite last step, at which nothing can be restored.
    with np.errstate(divide="ignore"):
        of_steps = np.where(products > 0, np.sqrt((1 - products) / products), 0.0)
    enough = of_steps >= sigma * (1 - _SLACK)
    if not enough.any():
        most = of_steps.max() * (high - low) / 2
        raise ValueError(f"noise must be at most that of the schedule's last step, {most:g}, got {noise.scale}")
    t = int(enough.argmax())
    return DiffusionStep(t, float(products[t]), low, high, prediction)


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """Return the cumulative products of the linear schedule of Ho et al. 2020 (arXiv:2006.11239), `f64[steps]`.

    Args:
        steps: number of steps.
        first, last: beta of the first and of the last step.

    Example:
        >>> linear_schedule(1000)[[0, -1]]
        array([9.99900000e-01, 4.03582977e-05])
    """
    return np.cumprod(1 - np.linspace(first, last, as_integer("steps", steps, 1)))


def cosine_schedule(steps: int = 4000, most: float = 0.999) -> np.ndarray:
    """Return the cumulative products of the cosine schedule of Nichol & Dhariwal 2021 (arXiv:2102.09672), `f64[steps]`.

    Args:
        steps: number of steps.
        most: the largest beta of a step.

    Example:
        >>> cosine_schedule(4000)[[0, 2000]].round(4)
        array([1.    , 0.4935])
    """
    steps = as_integer("steps", steps, 1)
    level = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - level[1:] / level[:-1], most))


def denoised(
    f: Any,
    denoiser: Callable[..., Any],
    noise: Noise | None = None,
    *,
    schedule: Any = None,
    prediction: str | None = None,
    clip_values: tuple[float, float] = PIXELS,
) -> Any:
    """Return the classifier that denoises its input and then classifies it: f(denoiser(x)).

    Certify it under Gaussian noise as any other classifier: `certify(denoised(f, denoiser), Gaussian(0.5), key, x)`.
    The radius is about x, and the guarantee is that of `certify`, whatever the denoiser does. A diffusion model whose
    step is for another sigma, or whose images have another range than `clip_values`, is certified to small radii only:
    look at `step`.

    Args:
        f: base classifier of clean inputs `[B, *event]`; one of another framework by `bridges.<framework>.as_jax`. It
            may be a `RandomClassifier`.
        denoiser: without a schedule, a function from noisy inputs `[B, *event]` to clean ones of the same shape and
            units. With one, a diffusion model `(image [B, *event], t i32[B]) -> output`, whose images are in [-1, 1].
            Its output may have twice the channels: the second half, a variance, is not used.
        noise: with a schedule, the noise under which it will be certified. The step of the diffusion model follows from
            it; the result's `step` says which one, and `step.sigma` its noise.
        schedule, prediction, clip_values: of the diffusion model: see `diffusion_step`.

    Returns:
        A `Denoised`, or a `RandomClassifier` of one.

    Raises:
        ValueError, TypeError: an argument is not as described. At a call, the denoiser returns another shape.

    Example:
        >>> from jaxsmooth import certify
        >>> f = lambda x: jnp.stack([x.sum(axis=1), 1 - x.sum(axis=1)], axis=1)
        >>> average = lambda x: jnp.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)
        >>> x, key = jnp.full((1, 100), 0.01), jax.random.key(0)
        >>> certify(denoised(f, average), Gaussian(0.02), key, x, n=1000).label
        Array([0], dtype=int32)
        >>> predict_noise = lambda image, t: 0.1 * image
        >>> denoised(f, predict_noise, Gaussian(0.25), schedule=linear_schedule(1000)).step.t
        145
    """
    base = f.f if isinstance(f, RandomClassifier) else f
    refuse_uncallable(base)
    if isinstance(denoiser, type) or not callable(denoiser):
        raise TypeError(f"denoiser must be a function of noisy inputs, got {in_brief(denoiser)}")
    if (found := kind_of(denoiser)) is not None:
        raise TypeError(
            f"denoiser must be a JAX function, got {found[0]}, {type(denoiser).__name__}: {found[1]} takes it if it "
            "is a function of x. bridges.pytorch.Denoised and bridges.tensorflow.Denoised take a network and denoiser "
            "of their framework, diffusion models too"
        )
    if schedule is not None and isinstance(getattr(denoiser, "framework", None), str):
        raise TypeError(
            f"denoiser must be a JAX function of (image, t), got a model of {denoiser.framework} as one of x: "  # pyright: ignore
            "bridges.pytorch.Denoised and bridges.tensorflow.Denoised take diffusion models of their frameworks"
        )
    if isinstance(denoiser, RandomClassifier):
        raise TypeError(
            "denoiser must be a function of noisy inputs. One that draws numbers of its own makes a RandomClassifier "
            "of the whole: RandomClassifier(lambda x, keys: f(denoiser(x, keys)))"
        )
    made = Denoised(base, denoiser, as_step(noise, schedule, prediction, clip_values))
    return RandomClassifier(made, of_batch=f.of_batch) if isinstance(f, RandomClassifier) else made


def as_step(noise: Any, schedule: Any, prediction: Any, clip_values: Any) -> DiffusionStep | None:
    """Return the step of a diffusion model; None where there is no schedule, and nothing that would need one."""
    if schedule is not None:
        if noise is None:
            raise ValueError(
                "noise must be given with a schedule: it decides at which step the diffusion model is used"
            )
        return diffusion_step(noise, schedule, prediction=prediction, clip_values=clip_values)
    is_default = isinstance(clip_values, (tuple, list)) and tuple(clip_values) == PIXELS
    given = {"noise": noise is not None, "prediction": prediction is not None, "clip_values": not is_default}
    unused = [name for name, is_given in given.items() if is_given]
    if unused:
        raise ValueError(f"{', '.join(unused)} must be left out without a schedule: only a diffusion model needs that")
    return None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Denoised:
    """A classifier behind a denoiser: what `denoised` returns, a callable pytree.

    Attributes:
        f: base classifier.
        denoiser: a function of noisy inputs, or a diffusion model.
        step: at which the diffusion model is used; None for a function of noisy inputs.
    """

    f: Any
    denoiser: Any
    step: DiffusionStep | None = field(default=None, metadata={"static": True})

    def denoise(self, x: Any) -> Any:
        """Return clean inputs from noisy ones."""
        if self.step is None:
            return like_x(self.denoiser(x), x)
        image = self.step.noisy_image(x)
        output = self.denoiser(image, jnp.full(len(x), self.step.t, jnp.int32))
        return self.step.as_x(jnp.clip(self.step.clean_image(image, output), -1, 1)).astype(x.dtype)

    def __call__(self, x: Any, *keys: Any) -> Any:
        """Return the scores of noisy inputs."""
        return self.f(self.denoise(x), *keys)


def like_x(clean: Any, x: Any) -> Any:
    """Return what a denoiser made of x, which must have its shape."""
    if tuple(getattr(clean, "shape", ())) != tuple(x.shape):
        found = tuple(clean.shape) if hasattr(clean, "shape") else in_brief(clean)
        raise ValueError(f"denoiser must return clean inputs of the shape of x, {tuple(x.shape)}, got {found}")
    return clean


def _as_output(output: Any) -> Any:
    """Return the array in what a diffusion model returns: itself, one named "sample", or the first of several."""
    if hasattr(output, "shape"):
        return output
    named = output.get("sample") if isinstance(output, dict) else getattr(output, "sample", None)  # pyright: ignore
    if hasattr(named, "shape"):
        return named
    if isinstance(output, (tuple, list)) and output and hasattr(output[0], "shape"):
        return output[0]
    raise TypeError(f"denoiser must return an array, or one under the name sample, got {in_brief(output)}")


def _first_half(output: Any, shape: tuple[int, ...]) -> Any:
    """Return the output of a diffusion model, without a second half of its channels where there is one."""
    found = tuple(output.shape)
    if found == shape:
        return output
    doubled = [axis for axis in range(1, len(shape)) if len(found) == len(shape) and found[axis] == 2 * shape[axis]]
    if len(doubled) != 1 or any(found[axis] != shape[axis] for axis in range(len(shape)) if axis != doubled[0]):
        raise ValueError(f"denoiser must return the shape of its image, {shape}, or twice its channels, got {found}")
    return output[tuple(slice(0, shape[axis]) if axis == doubled[0] else slice(None) for axis in range(len(shape)))]


def _as_range(clip_values: Any) -> tuple[float, float]:
    expected = "clip_values must be (least, greatest) of x, two finite numbers"
    try:
        low, high = (float(value) for value in clip_values)
    except (TypeError, ValueError):
        raise ValueError(f"{expected}, got {in_brief(clip_values)}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{expected}, got {in_brief(clip_values)}")
    return low, high


def _as_products(schedule: Any) -> tuple[np.ndarray, str]:
    """Return the cumulative products of a schedule, and what its model predicts."""
    said = "epsilon"
    if hasattr(schedule, "alphas_cumprod"):
        config = getattr(schedule, "config", {})
        said = getattr(config, "prediction_type", None) or (
            config.get("prediction_type") if hasattr(config, "get") else None
        )
        said = said or "epsilon"
        schedule = np.asarray(schedule.alphas_cumprod)
    elif hasattr(schedule, "config"):
        raise TypeError(
            f"schedule must have alphas_cumprod, which {type(schedule).__name__} has not: models of flow matching and "
            "the like have no such step"
        )
    expected = "the cumulative products [T] of a diffusion model, decreasing in (0, 1)"
    products = as_numbers("schedule", schedule, expected)
    if products.ndim != 1 or products.size == 0:
        raise ValueError(f"schedule must be {expected}, got an array of shape {products.shape}")
    fits = ((products[:-1] > 0) & (products[:-1] < 1)).all() and 0 <= products[-1] < 1
    if not fits or not (np.diff(products) < 0).all():
        raise ValueError(
            f"schedule must be {expected}, got values from {products[0]:g} to {products[-1]:g}: give alphas_cumprod in "
            "the order of t, not alphas or betas"
        )
    return products, said
