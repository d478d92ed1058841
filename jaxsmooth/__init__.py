"""Certified robustness by randomized smoothing, as pure functions in JAX."""

from jaxsmooth import losses
from jaxsmooth.anytime import AnytimeCertificate, anytime_lower_bound, certify_anytime
from jaxsmooth.certify import certificate, certify
from jaxsmooth.classifiers import check_classifier
from jaxsmooth.curves import (
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_bound,
    most_false_certificates,
)
from jaxsmooth.devices import over_devices
from jaxsmooth.lattice import LatticeGaussian
from jaxsmooth.logs import LogRow, read_log, write_log
from jaxsmooth.noise import Gaussian, Laplace, Uniform
from jaxsmooth.noise_report import NoiseReport, noise_report
from jaxsmooth.precision import PrecisionCertificate, certify_within
from jaxsmooth.predict import predict, prediction
from jaxsmooth.reports import draw_curves, report_table
from jaxsmooth.runs import certify_dataset, predict_dataset
from jaxsmooth.samples import stream_samples
from jaxsmooth.sequential import RadiiCertificate, RadiiState, certify_radii
from jaxsmooth.shares import merge_shares
from jaxsmooth.smooth import class_gradients, cross_entropy, smooth
from jaxsmooth.stores import StoredVotes, read_votes
from jaxsmooth.types import ABSTAIN, Certificate, Classifier, Noise, Prediction
from jaxsmooth.votes import count_votes, decision_keys, stream_votes

__all__ = [
    "ABSTAIN",
    "AnytimeCertificate",
    "Certificate",
    "Classifier",
    "Gaussian",
    "Laplace",
    "LatticeGaussian",
    "LogRow",
    "Noise",
    "NoiseReport",
    "PrecisionCertificate",
    "Prediction",
    "RadiiCertificate",
    "RadiiState",
    "StoredVotes",
    "Uniform",
    "abstention_rate",
    "anytime_lower_bound",
    "average_certified_radius",
    "certificate",
    "certified_accuracy",
    "certified_accuracy_bound",
    "certify",
    "certify_anytime",
    "certify_dataset",
    "certify_radii",
    "certify_within",
    "check_classifier",
    "class_gradients",
    "count_votes",
    "cross_entropy",
    "decision_keys",
    "draw_curves",
    "losses",
    "merge_shares",
    "most_false_certificates",
    "noise_report",
    "over_devices",
    "predict",
    "predict_dataset",
    "prediction",
    "read_log",
    "read_votes",
    "report_table",
    "smooth",
    "stream_samples",
    "stream_votes",
    "write_log",
]
