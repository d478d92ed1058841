"""Certified robustness by randomized smoothing, as pure functions in JAX."""

from typing import TYPE_CHECKING, Any

from jaxsmooth import losses
from jaxsmooth.anytime import Anytime, certify_anytime
from jaxsmooth.bounds import anytime_lower_bound
from jaxsmooth.certificates import Fixed, certificate, certify
from jaxsmooth.changes import Changes, certify_changed
from jaxsmooth.classifiers import check_classifier
from jaxsmooth.components import certify_components, components_certificate
from jaxsmooth.curves import (
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_bound,
    most_false_certificates,
    true_class_bounds,
)
from jaxsmooth.denoising import (
    Denoised,
    DiffusionStep,
    cosine_schedule,
    denoised,
    diffusion_step,
    linear_schedule,
)
from jaxsmooth.devices import over_devices
from jaxsmooth.discrete import Ablation, BitFlips, DiscreteNoise, Replacement
from jaxsmooth.lattice import LatticeGaussian
from jaxsmooth.level_runs import certify_levels_dataset
from jaxsmooth.levels import Level, LevelState, certify_levels
from jaxsmooth.logs import LogRow, log_rows, read_log, write_log
from jaxsmooth.noise import Gaussian, Laplace, Splitting, Uniform
from jaxsmooth.noise_tests import NoiseReport, noise_report
from jaxsmooth.pictures import draw_curves, draw_probabilities, draw_votes
from jaxsmooth.precision import Within, certify_within
from jaxsmooth.predictions import predict, prediction
from jaxsmooth.regression import AtMost, Interval, certify_regression, interval_ranks, regression_interval
from jaxsmooth.reports import probability_table, report_table
from jaxsmooth.runs import certify_dataset, count_dataset, predict_dataset
from jaxsmooth.sequential import Grid, GridState, certify_radii
from jaxsmooth.shares import merge_shares
from jaxsmooth.smoothing import class_gradients, cross_entropy, smooth
from jaxsmooth.splitting import (
    SplittingState,
    certify_splitting,
    certify_splitting_dataset,
    splitting_certificate,
)
from jaxsmooth.stores import StoredRun, read_votes
from jaxsmooth.stream import Stream, add_noise, decision_keys, key_of_seed, stream_key, stream_samples
from jaxsmooth.top_k import TopK, certify_top_k, top_k_certificate
from jaxsmooth.types import ABSTAIN, Certificate, Classifier, Noise, Prediction, RandomClassifier, Votes
from jaxsmooth.votes import count_votes, stream_votes

if TYPE_CHECKING:
    from jaxsmooth import training as training

__version__ = "0.1.0"

__all__ = [
    "ABSTAIN",
    "Ablation",
    "Anytime",
    "AtMost",
    "BitFlips",
    "Certificate",
    "Changes",
    "Classifier",
    "Denoised",
    "DiffusionStep",
    "DiscreteNoise",
    "Fixed",
    "Gaussian",
    "Grid",
    "GridState",
    "Interval",
    "Laplace",
    "LatticeGaussian",
    "Level",
    "LevelState",
    "LogRow",
    "Noise",
    "NoiseReport",
    "Prediction",
    "RandomClassifier",
    "Replacement",
    "Splitting",
    "SplittingState",
    "StoredRun",
    "Stream",
    "TopK",
    "Uniform",
    "Votes",
    "Within",
    "abstention_rate",
    "add_noise",
    "anytime_lower_bound",
    "average_certified_radius",
    "certificate",
    "certified_accuracy",
    "certified_accuracy_bound",
    "certify",
    "certify_anytime",
    "certify_changed",
    "certify_components",
    "certify_dataset",
    "certify_levels",
    "certify_levels_dataset",
    "certify_radii",
    "certify_regression",
    "certify_splitting",
    "certify_splitting_dataset",
    "certify_top_k",
    "certify_within",
    "check_classifier",
    "class_gradients",
    "components_certificate",
    "cosine_schedule",
    "count_dataset",
    "count_votes",
    "cross_entropy",
    "decision_keys",
    "denoised",
    "diffusion_step",
    "draw_curves",
    "draw_probabilities",
    "draw_votes",
    "interval_ranks",
    "key_of_seed",
    "linear_schedule",
    "log_rows",
    "losses",
    "merge_shares",
    "most_false_certificates",
    "noise_report",
    "over_devices",
    "predict",
    "predict_dataset",
    "prediction",
    "probability_table",
    "read_log",
    "read_votes",
    "regression_interval",
    "report_table",
    "smooth",
    "splitting_certificate",
    "stream_key",
    "stream_samples",
    "stream_votes",
    "top_k_certificate",
    "true_class_bounds",
    "write_log",
]


def __getattr__(name: str) -> Any:
    """Load `jaxsmooth.training` when it is first used: it needs optax, which nothing else here does."""
    if name != "training":
        raise AttributeError(f"module 'jaxsmooth' has no attribute {name!r}")
    import importlib

    return importlib.import_module("jaxsmooth.training")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return [*__all__, "training"]
