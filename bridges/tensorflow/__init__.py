"""TensorFlow 2 and Keras 3: models as JAX functions, and ART's smoothing class for them."""

from bridges.tensorflow.call import TensorFlowFunction, as_jax

__all__ = ["TensorFlowFunction", "as_jax"]
