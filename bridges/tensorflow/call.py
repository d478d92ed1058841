"""A TensorFlow 2 or Keras model as a JAX function with a gradient."""

import math
import weakref
from collections.abc import Callable
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf

from bridges.callbacks import BridgedFunction, Signature
from bridges.outputs import Reading, settings_as_weights
from bridges.randomness import seed_words
from bridges.tensorflow.functions import Graph, caller, float_dtype, gradient
from bridges.tensorflow.layers import all_layers
from bridges.tensorflow.transfer import narrowed, to_jax, to_jax_dtype, to_numpy, to_tensorflow
from jaxsmooth import RandomClassifier
from jaxsmooth.arguments import as_flag, refuse_other_framework


@overload
def as_jax(
    model: Any, *, output: Callable[[Any], Any] | None = None, random: Literal[False] = False
) -> "TensorFlowFunction": ...


@overload
def as_jax(model: Any, *, output: Callable[[Any], Any] | None = None, random: Literal[True]) -> RandomClassifier: ...


def as_jax(model: Any, *, output: Callable[[Any], Any] | None = None, random: bool = False) -> Any:
    """Return a JAX function that runs a TensorFlow 2 or Keras 3 model, forward and reverse-mode gradient.

    The function runs inside and outside of `jax.jit`, and under `jax.grad`, `jax.vmap`, `jax.lax.scan`, `jax.lax.map`
    and `jax.shard_map`. Outside of jit arrays cross by DLPack; inside, XLA hands the model its own buffers. The model
    is called as `model(x, training=False)`, or `model(x)` if it takes no such argument, as one `tf.function` for each
    shape and dtype of an input, whatever the batch size. Variables that change take effect at the next call; what
    Python code in the model decides is fixed by the first, as with every `tf.function`. The model is not changed, but
    for a Keras model that was never called: it makes its variables.

    Args:
        model: Keras model (Sequential, functional, subclassed), `tf.Module`, `tf.function` or function, which takes one
            tensor `[B, *event]` and returns one `[B, *result]`, for every B. A row of the result depends only on that
            row of the input. It may also return a mapping with "logits", or a tuple or list whose first entry are the
            scores (`bridges.outputs.Reading` has the rules).
        output: a function from what the model returns to one such tensor, for anything else.
        random: whether the Keras model is random given its input, such as dropout that is called with `training=True`
            within it: a plain `Dropout` draws nothing, since the model is not in training. What is returned is then a
            `jaxsmooth.RandomClassifier` with `of_batch=True`, for `compiled=False`: the generators of its layers
            (`keras.random.SeedGenerator`) are set for each batch from the keys of its rows, so that votes repeat, and
            depend on the batch size. They are put back afterwards.

    Returns:
        A function of one array `[B, *event]`: floats, or integers, which reach the model as they are. Two functions of
        the same model are equal. Results have the model's dtype, float64 becoming float32 unless `jax_enable_x64` is
        set.

    Raises:
        TypeError: `model` cannot be called, returns no tensor, or the input holds no numbers.
        ValueError: the result of a batch has another number of rows, or it is ambiguous which part of it is meant.
        NotImplementedError: inside jit on anything but a CPU, and second derivatives.
        An exception in the model arrives as it is outside of jit, and inside of it as JAX's runtime error with the
        model's message.

    Notes:
        On a GPU, TensorFlow reserves nearly all memory at its first operation, and JAX three quarters of it. Set
        `TF_FORCE_GPU_ALLOW_GROWTH=true` and `XLA_PYTHON_CLIENT_PREALLOCATE=false` before importing either.
        TensorFlow and XLA each have a thread for every core. They share the cores well where they take turns, as here.
        Under `shard_map`, an exception on one device keeps the others waiting at the next collective.

    Example:
        >>> import jax.numpy as jnp
        >>> weight = tf.constant([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> f = as_jax(lambda x: x @ weight)
        >>> x = jnp.ones((4, 3))
        >>> jax.jit(f)(x).shape, jax.grad(lambda x: f(x).sum())(x)[0]
        ((4, 2), Array([1., 1., 2.], dtype=float32))
    """
    refuse_other_framework("model", model, "tensorflow")
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"model must be a Keras model, a tf.Module or a function, got {model!r}")
    if output is not None and not callable(output):
        raise TypeError(f"output must be a function of what the model returns, got {output!r}")
    if as_flag("random", random):
        return RandomClassifier(RandomKerasFunction(model, Reading(output)), of_batch=True)
    return TensorFlowFunction(model, Reading(output))


# What Keras numbers, and what refers to it.
_NAMES = ("name", "inbound_nodes", "input_layers", "output_layers", "build_config", "registered_name")


class TensorFlowFunction(BridgedFunction):
    """A TensorFlow model as a JAX function."""

    framework = "TensorFlow"

    def __init__(self, model: Any, reading: Reading) -> None:
        super().__init__(model, reading)
        self._call = caller(model)
        self._signatures: dict[Any, Signature] = {}
        self._forward = Graph(self._run)
        self._gradient = Graph(self._run_gradient)

    def weights(self) -> dict[str, np.ndarray]:
        """Return all variables, in order: several may have one name."""
        variables = getattr(self.model, "variables", ())
        values = {f"{place} {variable.name}": np.asarray(variable) for place, variable in enumerate(variables)}
        return values | settings_as_weights(self.reading.output, _configuration(self.model))

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """Run the model on a tensor that it may not keep."""
        result = self._forward(self._own(x))
        self.check_rows(tuple(result.shape), len(x))
        return narrowed(result)

    def gradient(self, x: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
        """Return the gradient of <cotangent, model(x)> in x."""
        return self._gradient(self._own(x), cotangent)

    def signature(self, event: tuple[int, ...], dtype: np.dtype[Any]) -> Signature:
        """Find out, on two rows of zeros, what the model returns and how it treats its input."""
        entry = (tuple(event), np.dtype(dtype))
        if entry not in self._signatures:
            self._signatures[entry] = self._probe(*entry)
        return self._signatures[entry]

    def view(self, array: Any) -> tf.Tensor:
        """View a JAX array or a buffer as a tensor."""
        return to_tensorflow(array)

    def as_rows(self, tensor: tf.Tensor, event_ndim: int) -> tf.Tensor:
        """Make one batch dimension of all dimensions before the last `event_ndim`."""
        return tensor if tensor.ndim == event_ndim + 1 else tf.reshape(tensor, [-1, *tensor.shape[-event_ndim:]])

    def to_jax(self, tensor: tf.Tensor, *, private: bool) -> jax.Array:
        """View a tensor as a JAX array. TensorFlow never writes to memory that is in use elsewhere."""
        del private
        return to_jax(tensor)

    def write(self, tensor: tf.Tensor, out: Any) -> None:
        """Write a tensor into a buffer of the same size."""
        target = np.asarray(out)
        values = to_numpy(tensor)
        if values.size != target.size:
            raise ValueError(f"expected a result of shape {target.shape}, got {values.shape}")
        target[...] = values.reshape(target.shape)

    def check_platform(self, platform: str) -> None:
        """Refuse all but the CPU: TensorFlow cannot write to the memory of another."""
        super().check_platform("a GPU" if platform == "gpu" else platform)

    def _run(self, x: tf.Tensor) -> tf.Tensor:
        result = self.read(self._call(_cast(x, float_dtype(self.model)), False))
        if not tf.is_tensor(result):
            raise TypeError(f"{type(self.model).__name__} must return a tensor, got {type(result).__name__}")
        return result

    def _run_gradient(self, x: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
        def weighted(result: Any) -> tf.Tensor:
            return tf.reshape(tf.cast(cotangent, result.dtype), tf.shape(result))

        return gradient(self._run, x, weighted)

    def _own(self, x: Any) -> tf.Tensor:
        """Return a tensor that the model may keep, if it is one that does."""
        kept = self.signature(tuple(x.shape[1:]), np.dtype(x.dtype.as_numpy_dtype)).takes_its_input
        return x + 0 if kept else x

    def _probe(self, event: tuple[int, ...], dtype: np.dtype[Any]) -> Signature:
        # The memory is NumPy's, so that it can be seen whether anything still refers to it afterwards.
        memory = np.zeros(2 * math.prod(event) * dtype.itemsize + 64, np.uint8)
        start = -memory.ctypes.data % 64
        words = memory[start : start + memory.size - 64].view(f"u{dtype.itemsize}").reshape(2, *event)
        x = tf.bitcast(to_tensorflow(words), tf.as_dtype(dtype))
        self._run(tf.zeros_like(x))  # makes the variables of a Keras model that has none yet
        result = self._forward(x)
        self.check_rows(tuple(result.shape), 2)
        shape = tuple(result.shape[1:])
        result_dtype = to_jax_dtype(result.dtype)
        observer = weakref.ref(memory)
        del x, words, result, memory
        return Signature(shape, result_dtype, observer() is not None, lends_its_result=False)


def _configuration(model: Any) -> Any:
    """Return the settings of a Keras model's layers, without the names that Keras numbers; None if it has no such."""
    try:
        return _without_names(model.get_config())
    except Exception:  # of a subclassed model, or none of Keras
        return None


def _without_names(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_names(value) for key, value in config.items() if key not in _NAMES}
    return [_without_names(value) for value in config] if isinstance(config, (list, tuple)) else config


class RandomKerasFunction:
    """A Keras model that is random given its input, as a function of a batch and its keys.

    Args:
        model: whose random layers have generators of Keras.
        reading: how scores are read from what it returns.

    Raises:
        TypeError: it has none.
    """

    def __init__(self, model: Any, reading: Reading) -> None:
        self.model = model
        self.reading = reading
        self._generators = [generator for layer in all_layers(model) for generator in _generators(layer)]
        if not self._generators:
            raise TypeError(
                f"model must be a Keras model with layers that draw from a keras.random.SeedGenerator, which "
                f"{type(model).__name__} has none of: random=True could not repeat its numbers"
            )

    def __call__(self, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Return the scores of a batch, random numbers seeded from the keys of its rows."""
        words = seed_words(x, keys, "Keras")
        before = [generator.state.numpy() for generator in self._generators]
        variables: Any = self.model.non_trainable_variables
        statistics = [variable.numpy() for variable in variables]
        try:
            for place, generator in enumerate(self._generators):
                generator.state.assign(words ^ np.uint32(place))
            rows = _cast(to_tensorflow(np.asarray(x)), float_dtype(self.model))
            scores = self.reading(self.model(rows), type(self.model).__name__)
            return jnp.asarray(to_numpy(narrowed(scores)))
        finally:
            for generator, state in zip(self._generators, before, strict=True):
                generator.state.assign(state)
            # Batch normalisation that is called with training=True within the model changes its statistics.
            for variable, value in zip(variables, statistics, strict=True):
                variable.assign(value)


def _generators(layer: Any) -> list[Any]:
    """Return the random generators of a layer, those in its lists and dicts, too."""
    own: list[Any] = []
    for value in vars(layer).values():
        entries = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        own += [entry for entry in entries if isinstance(entry, keras.random.SeedGenerator)]
    return list({id(generator): generator for generator in own}.values())


def _cast(x: tf.Tensor, dtype: tf.DType | None) -> tf.Tensor:
    return x if dtype is None or not x.dtype.is_floating else tf.cast(x, dtype)  # integers stay what they are
