"""TensorFlow 2 and Keras 3: models as JAX functions, and ART's smoothing class for them."""

from bridges.tensorflow.call import TensorFlowFunction, as_jax
from bridges.tensorflow.classifier import TensorFlowV2RandomizedSmoothing
from bridges.tensorflow.images import WithPreprocessing

__all__ = ["TensorFlowFunction", "TensorFlowV2RandomizedSmoothing", "WithPreprocessing", "as_jax"]
