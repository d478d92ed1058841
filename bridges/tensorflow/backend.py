"""What the shared classes need of TensorFlow: outputs, losses, gradients, training steps, activations."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import h5py
import jax
import keras
import numpy as np
import tensorflow as tf

from bridges.archives import read_arrays, refuse_packed
from bridges.backend import Judge, Scores, Weigh
from bridges.batches import CPU, Limits
from bridges.layers import only_output
from bridges.losses import PROBABILITIES, kind_of_rows
from bridges.outputs import Reading
from bridges.tensorflow.call import TensorFlowFunction
from bridges.tensorflow.copies import assign, forget, pack_model, pack_optimizer, unpack_model, unpack_optimizer
from bridges.tensorflow.functions import Graph, caller, float_dtype, gradient
from bridges.tensorflow.layers import all_layers, find_layer, layer_names, recorded, reinitialise
from bridges.tensorflow.losses import Loss
from bridges.tensorflow.transfer import narrowed, to_numpy, to_tensorflow

# Operations that change no number, and the ones that tell what outputs are.
_SHAPES = ("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims")
_OPERATIONS = {"Sigmoid": PROBABILITIES}
_LOSSES = {"none": "_losses", "mean": "_mean_loss", "sum": "_sum_of_losses"}


class TensorFlowBackend:
    """A model with its loss and optimizer.

    Args:
        model: Keras model, `tf.Module` or function.
        loss: of (labels, outputs).
        optimizer: of the model's variables, or None.
        train_step: function of (model, images, labels) that makes one training step, instead of loss and optimizer.
        classes: number of classes.
        output: the user's function from what the model returns to its outputs, or None.
    """

    # Twice and four times as large batches as in the other frameworks: a graph takes a while to start.
    limits = Limits(2 * CPU.layer_values, 4 * CPU.gradient_values, CPU.rows)

    def __init__(
        self,
        model: Any,
        loss: Loss,
        optimizer: Any,
        train_step: Any,
        classes: int,
        output: Callable[[Any], Any] | None = None,
    ) -> None:
        self.reading = Reading(output, classes, "model_output")
        self.model = model
        self.loss_function = loss
        self.optimizer = optimizer
        self.train_step = train_step
        self.classes = classes
        self._function = TensorFlowFunction(model, self.reading)
        self._graphs: dict[Any, Graph] = {}
        self._widths: dict[tuple[int, ...], int] = {}  # outputs for one input of each shape
        self._lent_functions: dict[int, Callable[..., Any]] = {}
        self._trained: list[int] | None = None

    @property
    def layer_names(self) -> list[str] | None:
        """Names of the layers of a Keras model, None for another."""
        return layer_names(self.model)

    def as_jax(self) -> TensorFlowFunction:
        """Return the model as a JAX function."""
        return self._function

    def is_tensor(self, x: Any) -> bool:
        """Return whether x is a tensor."""
        return tf.is_tensor(x)

    def as_tensor(self, x: Any) -> tf.Tensor:
        """Return an array, or a tensor with its graph, as a float32 tensor."""
        return tf.cast(x, tf.float32) if tf.is_tensor(x) else _tensor(x)

    def like(self, x: Any, array: np.ndarray) -> Any:
        """Return an array as a tensor if x is one, else as it is."""
        return tf.constant(array) if tf.is_tensor(x) else array

    def on_host(self, noisy: jax.Array) -> np.ndarray:
        """Return a view: TensorFlow never writes to memory that is in use elsewhere."""
        return np.asarray(noisy)

    def outputs(self, x: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """Return the outputs of the model for a tensor, recorded by the caller's tape."""
        return self._call(x, training)

    @contextlib.contextmanager
    def scoring(self, *, training: bool = False) -> Generator[Scores]:
        """Lend a function from inputs to scores `[B, C]`; two classes from one output of a binary model."""
        graph = self._graph(self._scores, training)

        def scores(x: np.ndarray | jax.Array) -> np.ndarray:
            with self._kept_state(training):
                return to_numpy(graph(to_tensorflow(np.ascontiguousarray(x, np.float32))))

        yield scores

    def vjp(self, x: np.ndarray | jax.Array, weigh: Weigh, *, copies: int = 1, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the scores weighted by `weigh(scores)`, held constant, summed over copies."""
        self._width(x)
        with self._lent(weigh) as name, self._kept_state(training):
            numbers = tf.constant([name, copies], tf.int64)
            return to_numpy(self._graph(self._vjp, training)(_tensor(x), numbers))

    def loss(self, x: np.ndarray, y: Any, reduction: str, *, training: bool = False) -> np.ndarray:
        """Return the loss of each row for "none", or the loss's own "mean" or "sum" of them."""
        self.loss_function.checked()  # within a graph, an error comes with the graph's own trace
        labels = self._labels(x, y)
        with self._kept_state(training):
            return to_numpy(self._graph(getattr(self, _LOSSES[reduction]), training)(_tensor(x), labels))

    def loss_from_scores(self, scores: np.ndarray, y: Any, reduction: str) -> np.ndarray:
        """Return the same of outputs."""
        labels = self.loss_function.labels(y, len(scores), scores.shape[1])
        return to_numpy(self.loss_function.reduced(_tensor(scores), tf.constant(labels), reduction))

    def last_operation(self, x: np.ndarray) -> str | None:
        """Return what the model makes of these inputs: by the numbers, of one output by the last operation."""
        try:
            # Row by row, since the caller may bear no larger batch.
            rows = [self._call(_tensor(x[i : i + 1]), False) for i in range(len(x))]
            if rows[0].shape[1] > 1:
                return kind_of_rows(np.concatenate([to_numpy(row) for row in rows]))
            run = tf.function(lambda x: self._call(x, False))
            operation = run.get_concrete_function(tf.TensorSpec(x.shape, tf.float32)).graph.outputs[0].op
        except Exception:  # what the model cannot do is said where it is needed
            return None
        while operation.type in _SHAPES:
            operation = operation.inputs[0].op
        return _OPERATIONS.get(operation.type)

    def loss_gradient(self, x: np.ndarray, y: Any, *, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the loss under its own reduction; the mean of one that does not reduce."""
        self.loss_function.checked()
        labels = self._labels(x, y)
        with self._kept_state(training):
            return to_numpy(self._graph(self._loss_gradient, training)(_tensor(x), labels))

    def refuse_untrainable(self, *, by_objective: bool = False) -> None:
        """Refuse to train without a `train_step`, or an optimizer and a loss; by an objective, without an optimizer."""
        if by_objective:
            if self.optimizer is None:
                raise ValueError("an optimizer is needed to train by an objective: give it to the constructor")
            return
        if self.train_step is not None:
            return
        if self.optimizer is None:
            raise ValueError("an optimizer or a train_step is needed to train: give it to the constructor")
        self.loss_function.checked()

    def advance(self, scheduler: Any, epoch: int) -> None:
        """Call a scheduler with the index of the epoch."""
        scheduler(epoch)

    def fit(self, batches: Iterable[tuple[np.ndarray, Any]], *, training: bool = True) -> None:
        """Make one training step for each batch, in the mode asked for."""
        is_built = self.train_step is not None
        self._forget_frozen()
        for x, y in batches:
            images = _tensor(x)
            labels = self._labels(x, y)
            if not is_built:
                self._build_optimizer()  # after a batch: `_labels` made the variables of a lazily built model
                is_built = True
            if self.train_step is not None:
                self.train_step(self.model, images, labels)
            else:
                self._graph(self._step, training)(images, labels)

    def follow(self, batches: list[Any], judge: Judge, *, training: bool = True) -> None:
        """Make one training step along the gradient of `judge(outputs)`, the outputs `[B, C]` of each batch."""
        self._forget_frozen()
        for x in batches:
            self._width(x)  # makes the variables of a lazily built model
        self._build_optimizer()
        with self._lent(judge) as name:
            self._graph(self._judged_step, training)(tf.constant([name], tf.int64), *map(_tensor, batches))

    def _forget_frozen(self) -> None:
        """Drop the graphs of training if other variables are trainable now: a graph has those that were."""
        trained = [id(variable) for variable in getattr(self.model, "trainable_variables", ())]
        if trained != self._trained:
            self._trained = trained
            self._graphs = {entry: graph for entry, graph in self._graphs.items() if not entry[1]}

    @contextlib.contextmanager
    def _lent(self, function: Callable[..., Any]) -> Generator[int]:
        """Lend a function to graphs, under a number: two threads may pass the same function."""
        call = object()
        name = id(call)
        self._lent_functions[name] = function
        try:
            yield name
        finally:
            del self._lent_functions[name]

    def _build_optimizer(self) -> None:
        """Make the variables of the optimizer: that is not possible within a graph.

        A Keras optimizer serves the variables that it was built for. One of another model is copied.
        """
        if not isinstance(self.optimizer, keras.optimizers.Optimizer):
            return
        variables: Any = self.model.trainable_variables
        # There is no public name for the variables that it serves.
        served = {id(variable) for variable in self.optimizer._trainable_variables}  # pyright: ignore
        if self.optimizer.built and not served.issuperset(map(id, variables)):
            self.optimizer = type(self.optimizer).from_config(self.optimizer.get_config())
            self._graphs.clear()
        if not self.optimizer.built:
            self.optimizer.build(variables)

    def activations(self, x: Any, layer: Any, *, framework: bool = False) -> Any:
        """Return what a layer returns for the inputs: an array, or a tensor, recorded by the caller's tape."""
        output = self._activation(self.as_tensor(x), layer, False)
        return output if framework else to_numpy(output)

    def activation_gradient(
        self, loss: Callable[[Any, Any], Any], x: np.ndarray, y: np.ndarray, layer: Any, *, training: bool = False
    ) -> np.ndarray:
        """Return the gradient in x of a loss of the activations of x and those of y at a layer."""
        with self._kept_state(training):
            return to_numpy(
                gradient(
                    lambda leaf: loss(*(self._activation(v, layer, training) for v in (leaf, _tensor(y)))),
                    _tensor(x),
                )
            )

    def widest_layer(self, x: np.ndarray) -> int:
        """Return how many values the largest output of a layer has, for these inputs; 0 where there are no layers."""
        with recorded(*all_layers(self.model)) as outputs:
            result = self._call(_tensor(x), False)
        self._refuse_shape(tuple(result.shape[1:]))
        # The width is known from this call, so that no other call need find it out.
        self._widths[tuple(x.shape[1:])] = result.shape[1]
        return max((int(tf.size(output)) for output in outputs if tf.is_tensor(output)), default=0)

    def save(self, path: Path) -> None:
        """Write the weights to `<path>.weights.h5` (Keras) or `.weights.npz`, and `<path>.optimizer.npz`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.model, keras.Model):
            self.model.save_weights(f"{path}.weights.h5")
        else:
            np.savez(f"{path}.weights.npz", *self._variables())
        if isinstance(self.optimizer, keras.optimizers.Optimizer) and self.optimizer.built:
            np.savez(f"{path}.optimizer.npz", *[v.numpy() for v in self.optimizer.variables])
        else:  # that of other weights
            Path(f"{path}.optimizer.npz").unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Read what `save` wrote. The files hold only arrays: nothing in them is executed."""
        # Loading may fail half-way. The model then gets its weights back.
        before = self._variables()
        try:
            if isinstance(self.model, keras.Model):
                _refuse_packed(Path(f"{path}.weights.h5"))
                self.model.load_weights(f"{path}.weights.h5")
            else:
                _assign_stored(f"{path}.weights.npz", self.model.variables)
            if isinstance(self.optimizer, keras.optimizers.Optimizer) and Path(f"{path}.optimizer.npz").exists():
                self._build_optimizer()
                _assign_stored(f"{path}.optimizer.npz", self.optimizer.variables)
            else:
                forget(self.optimizer, getattr(self.model, "trainable_variables", []))
        except Exception:
            assign(self.model.variables, before)
            raise

    def reset(self) -> None:
        """Draw all variables again and forget the optimizer's state."""
        reinitialise(self.model)
        forget(self.optimizer, getattr(self.model, "trainable_variables", []))

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles are made of: no compiled code, and models in a form that can be copied."""
        packed = {"model": pack_model(self.model), "optimizer": pack_optimizer(self.optimizer)}
        return {**self.__dict__, "_function": None, "_graphs": {}, "_lent_functions": {}, "_trained": None, **packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpack."""
        self.__dict__.update(state, model=unpack_model(state["model"]))
        self.optimizer = unpack_optimizer(self.optimizer, getattr(self.model, "trainable_variables", []))
        self._function = TensorFlowFunction(self.model, self.reading)

    def _call(self, x: tf.Tensor, training: bool) -> Any:
        return tf.cast(self._outputs(x, training), tf.float32)

    def _outputs(self, x: tf.Tensor, training: bool) -> Any:
        dtype = float_dtype(self.model)
        result = caller(self.model)(x if dtype is None else tf.cast(x, dtype), training)
        outputs = self.reading(result, type(self.model).__name__)
        if not tf.is_tensor(outputs):
            raise TypeError(f"{type(self.model).__name__} must return a tensor, got {type(outputs).__name__}")
        return outputs

    def _activation(self, x: tf.Tensor, layer: Any, training: bool) -> Any:
        found = find_layer(self.model, layer)
        if isinstance(found, keras.layers.InputLayer):
            return x
        with recorded(found) as outputs:
            self._call(x, training)
        return only_output(outputs, layer)

    def _scores(self, training: bool, x: tf.Tensor) -> Any:
        outputs = self._outputs(x, training)
        outputs = outputs if outputs.dtype.size > 4 else tf.cast(outputs, tf.float32)
        columns = self.loss_function.columns(outputs) if outputs.shape[1] < self.classes else outputs
        return narrowed(columns, tf.float32)

    def _losses(self, training: bool, x: tf.Tensor, labels: tf.Tensor) -> Any:
        return self.loss_function.reduced(self._call(x, training), labels, "none")

    def _mean_loss(self, training: bool, x: tf.Tensor, labels: tf.Tensor) -> Any:
        return self.loss_function.reduced(self._call(x, training), labels, "mean")

    def _sum_of_losses(self, training: bool, x: tf.Tensor, labels: tf.Tensor) -> Any:
        return self.loss_function.reduced(self._call(x, training), labels, "sum")

    def _loss_gradient(self, training: bool, x: tf.Tensor, labels: tf.Tensor) -> Any:
        return gradient(lambda x: self.loss_function(self._call(x, training), labels), x)

    def _vjp(self, training: bool, x: tf.Tensor, numbers: tf.Tensor) -> Any:
        # One graph that asks Python for the weights. The second of two graphs would compute every variable's gradient.
        def weigh(scores: Any) -> Any:
            weights = tf.numpy_function(
                lambda scores, name: self._lent_functions[int(name)](scores).astype(np.float32),
                (scores, numbers[0]),
                tf.float32,
            )
            return tf.ensure_shape(weights, scores.shape)

        of_copies = gradient(lambda x: self._scores(training, x), x, weigh)
        shape = tf.shape(of_copies, tf.int64)
        return tf.reduce_sum(tf.reshape(of_copies, tf.concat([[-1], numbers[1:], shape[1:]], 0)), 1)

    def _step(self, training: bool, x: tf.Tensor, labels: tf.Tensor) -> None:
        self._optimize(lambda: self.loss_function(self._call(x, training), labels))

    def _judged_step(self, training: bool, name: tf.Tensor, *batches: tf.Tensor) -> None:
        def judged(name: Any, *outputs: Any) -> list[np.ndarray]:
            _, weights = self._lent_functions[int(name[0])](list(outputs))
            return [weight.astype(np.float32) for weight in weights]

        def loss() -> Any:
            outputs = [self._scores(training, x) for x in batches]
            weights = tf.numpy_function(judged, (name, *outputs), [tf.float32] * len(outputs))
            # Its gradient in the variables is that of the objective: the weights are its derivatives in the outputs.
            parts = [
                tf.reduce_sum(tf.stop_gradient(tf.ensure_shape(weight, each.shape)) * each)
                for weight, each in zip(weights, outputs, strict=True)
            ]
            return tf.add_n(parts)

        self._optimize(loss)

    def _optimize(self, loss_of: Callable[[], Any]) -> None:
        """Make one step of the optimizer, within a graph."""
        variables: Any = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = loss_of()
            # Regularisers, and what layers add by `add_loss`, are part of the loss of a Keras model.
            loss = tf.add_n([loss, *(tf.cast(own, loss.dtype) for own in getattr(self.model, "losses", ()))])
            if hasattr(self.optimizer, "scale_loss"):  # its `apply_gradients` divides by the scale
                loss = self.optimizer.scale_loss(loss)
        pairs = zip(tape.gradient(loss, variables), variables, strict=True)
        # An output that is not read has no gradient, of which Keras would warn at each step.
        used = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
        if not used:
            raise ValueError("the loss does not depend on any trainable variable of the model differentiably")
        self.optimizer.apply_gradients(used)

    def _graph(self, run: Callable[..., Any], training: bool) -> Graph:
        """Return one of the functions above as a graph, the same at each call."""
        entry = run.__name__, training
        if entry not in self._graphs:
            self._graphs[entry] = Graph(functools.partial(run, training))
        return self._graphs[entry]

    def _width(self, x: np.ndarray | jax.Array) -> int:
        """Return how many outputs the model has for one input."""
        event = tuple(x.shape[1:])
        if event not in self._widths:
            shape = self._function.signature(event, np.dtype(np.float32)).shape
            self._refuse_shape(shape)
            self._widths[event] = shape[0]
        return self._widths[event]

    def _refuse_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse outputs of one input that are not one for each class, or one for two classes."""
        if shape != (self.classes,) and (shape, self.classes) != ((1,), 2):
            got = ", ".join(map(str, ("N", *shape)))
            raise ValueError(f"the model must return [N, {self.classes}] for nb_classes, got [{got}]")

    def _labels(self, x: np.ndarray, y: Any) -> tf.Tensor:
        return tf.constant(self.loss_function.labels(y, len(x), self._width(x)))

    def _variables(self) -> list[np.ndarray]:
        return [v.numpy() for v in self.model.variables]

    @contextlib.contextmanager
    def _kept_state(self, training: bool) -> Generator[None]:
        """Put the statistics that training mode updates back afterwards."""
        variables: Any = getattr(self.model, "non_trainable_weights", ()) if training else ()
        before = [v.numpy() for v in variables]
        try:
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)


def _tensor(x: np.ndarray | jax.Array) -> tf.Tensor:
    return tf.constant(np.asarray(x, np.float32))


def _assign_stored(path: str, variables: list[Any]) -> None:
    """Assign the arrays of a file of `numpy.savez` to variables."""
    stored = read_arrays(Path(path), {f"arr_{i}": tuple(v.shape) for i, v in enumerate(variables)})
    # NumPy's files know no bfloat16: they give its bytes.
    typed = [
        value.view(variable.numpy().dtype) if value.dtype.kind == "V" else value
        for variable, value in zip(variables, stored.values(), strict=True)
    ]
    assign(variables, typed)


def _refuse_packed(path: Path) -> None:
    """Refuse a file of weights that is larger in memory than on the disk. Keras compresses nothing."""
    sizes: list[int] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: sizes.append(int(item.nbytes)) if isinstance(item, h5py.Dataset) else None)
    refuse_packed(path, sum(sizes))
