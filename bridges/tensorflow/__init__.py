"""TensorFlow 2 and Keras 3: models as JAX functions, and ART's smoothing class for them."""

from bridges.tensorflow.call import TensorFlowFunction, as_jax
from bridges.tensorflow.classifier import TensorFlowV2RandomizedSmoothing
from bridges.tensorflow.denoising import Denoised
from bridges.tensorflow.images import WithPreprocessing
from bridges.tensorflow.objectives import TensorFlowV2MACER, TensorFlowV2SmoothAdv

__all__ = [
    "Denoised",
    "TensorFlowFunction",
    "TensorFlowV2MACER",
    "TensorFlowV2RandomizedSmoothing",
    "TensorFlowV2SmoothAdv",
    "WithPreprocessing",
    "as_jax",
]
