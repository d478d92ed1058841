"""What the shared classes need of flax: outputs, losses, gradients, training steps, activations."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bridges.backend import Judge, Scores, Weigh
from bridges.batches import CPU, GPU, few_sizes, fill_rows
from bridges.flax.copies import load_tree, pack, save_tree, unpack
from bridges.flax.functions import FlaxFunction, VotingFunction
from bridges.flax.losses import Loss
from bridges.flax.modules import LinenModel, NNXModel
from bridges.flax.programs import last_operation
from bridges.layers import first_array, layer_index
from bridges.losses import kind_of_rows
from bridges.outputs import Reading
from jaxsmooth.training import TrainState, make_train_step


class FlaxBackend:
    """A module with its loss and optimizer.

    Args:
        network: the module with its variables.
        loss: of (outputs, labels).
        optimizer: optax transformation, or None.
        classes: number of classes.
        shape: of one input.
        key: of dropout in linen modules and of fresh weights.
    """

    def __init__(
        self,
        network: LinenModel | NNXModel,
        loss: Loss,
        optimizer: optax.GradientTransformation | None,
        classes: int,
        shape: tuple[int, ...],
        key: jax.Array,
    ) -> None:
        self.network = network
        self.loss_function = loss
        self.optimizer = optimizer
        self.classes = classes
        self.shape = shape
        self.key = key
        # Each number of rows compiles the network again.
        self.limits = (CPU if jax.default_backend() == "cpu" else GPU)._replace(least=32)
        self.steps = 0
        self.optimizer_state: Any = None
        self._compiled: dict[str, Callable[..., Any]] = {}

    @property
    def model(self) -> Any:
        """The module."""
        return self.network.module

    @property
    def reading(self) -> Reading:
        """How outputs are read from what the module returns."""
        return self.network.reading

    @property
    def layer_names(self) -> list[str]:
        """Names of the submodules that the module calls; those in a list get its name and their place in it."""
        f = self.network.function()
        names = list[str]()

        def record(x: jax.Array) -> None:
            names.extend(path[0] for path in f.structure.record(f.params, f.state, x) if len(path) == 1)

        jax.eval_shape(record, jnp.zeros((1, *self.shape)))
        return names

    def as_jax(self) -> FlaxFunction:
        """Return the module as a function, with the variables that it has now."""
        return self.network.function()

    def is_tensor(self, x: Any) -> bool:
        """Return whether x is an array of JAX."""
        return isinstance(x, jax.Array)

    def as_tensor(self, x: Any) -> jax.Array:
        """Return an array, or one of JAX that may be traced, in float32."""
        return jnp.asarray(x, jnp.float32)

    def like(self, x: Any, array: np.ndarray) -> Any:
        """Return an array as JAX's if x is one, else as it is."""
        return jnp.asarray(array) if isinstance(x, jax.Array) else array

    def on_host(self, noisy: jax.Array) -> np.ndarray:
        """Return a view: a module never writes to its inputs."""
        return np.asarray(noisy)

    def as_voter(self, steps: list[Any], x: np.ndarray) -> VotingFunction:
        """Return the module after some standardisations, as a JAX function from noisy inputs like x to scores."""
        f = self.network.function()
        width = self._width(f, np.zeros((1, *x.shape[1:]), np.float32))
        arrays = tuple((jnp.asarray(step.mean), jnp.asarray(step.std)) for step in steps)
        return VotingFunction(f, arrays, None if width == self.classes else self.loss_function)

    def outputs(self, x: jax.Array, *, training: bool = False) -> jax.Array:
        """Return the outputs of the module, which JAX may trace."""
        return self._outputs(self.network.function(), self._step_key(), x, training)[0]

    @contextlib.contextmanager
    def scoring(self, *, training: bool = False) -> Generator[Scores]:
        """Lend a function from inputs to scores `[B, C]`; two classes from one output of a binary model."""
        yield lambda x: np.asarray(self._run(self._scores, x, training=training))

    def vjp(self, x: np.ndarray | jax.Array, weigh: Weigh, *, copies: int = 1, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the scores weighted by `weigh(scores)`, held constant, summed over copies."""
        inputs = len(x) // copies
        # Each number of rows compiles the network again, so there are few. In training mode padding would change the
        # statistics of the batch.
        filled = x if training or copies == 1 else fill_rows(x, few_sizes(inputs) * copies)
        scores, pull = self._run(self._scores_and_pull, filled, training=training)
        cotangent = np.zeros(scores.shape, np.float32)
        cotangent[: len(x)] = weigh(np.asarray(scores)[: len(x)])
        return np.asarray(self._jitted(self._pulled)(pull, cotangent, copies=copies))[:inputs]

    def loss(self, x: np.ndarray, y: Any, reduction: str, *, training: bool = False) -> np.ndarray:
        """Return the loss of each row for "none", or their "mean" or "sum"."""
        return np.asarray(self._run(self._losses, x, self._labels(x, y), reduction=reduction, training=training))

    def loss_from_scores(self, scores: np.ndarray, y: Any, reduction: str) -> np.ndarray:
        """Return the same of outputs."""
        labels = self.loss_function.labels(y, len(scores), scores.shape[1])
        return np.asarray(self.loss_function.reduced(jnp.asarray(scores), jnp.asarray(labels), reduction))

    def last_operation(self, x: np.ndarray) -> str | None:
        """Return what the module makes of these inputs: by the numbers, of one output by the last operation."""
        try:
            f = self.network.function()
            # Row by row, since the caller may bear no larger batch.
            outputs = np.concatenate([np.asarray(self._jitted(self._evaluate)(f, row[None])) for row in x])
            if outputs.shape[1] > 1:
                return kind_of_rows(outputs)
            return last_operation(jax.make_jaxpr(f)(x[:1]).jaxpr)
        except Exception:  # what the module cannot do is said where it is needed
            return None

    def loss_gradient(self, x: np.ndarray, y: Any, *, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the loss under its own reduction."""
        return np.asarray(self._run(self._loss_gradient, x, self._labels(x, y), training=training))

    def refuse_untrainable(self, *, by_objective: bool = False) -> None:
        """Refuse to train without an optimizer."""
        del by_objective
        if self.optimizer is None:
            raise ValueError("an optimizer is needed to train: give it to the constructor")

    def advance(self, scheduler: Any, epoch: int) -> None:
        """Call a scheduler with the index of the epoch."""
        scheduler(epoch)

    def fit(self, batches: Iterable[tuple[np.ndarray, Any]], *, training: bool = True) -> None:
        """Make one training step for each batch, in the mode asked for. Steps made before an error stay made."""
        state = TrainState(self.network.function(), self._optimizer_state(), jnp.int32(self.steps))
        step = self._train_step(training)
        try:
            for x, y in batches:
                # The inputs have their noise.
                state, _ = step(state, None, self.key, x, self._labels(x, y))
        finally:
            self.network.update(state.f)
            self.optimizer_state = state.optimizer_state
            self.steps = int(state.step)

    def _train_step(self, training: bool) -> Callable[..., tuple[TrainState, jax.Array]]:
        """Return a step of training by the loss, compiled once for each mode."""
        name = f"step {training}"
        if name not in self._compiled:

            def loss(network: Any, noise: None, key: jax.Array, x: jax.Array, labels: jax.Array) -> jax.Array:
                del noise, key
                outputs = network(x) if training else network.f(x)
                return self.loss_function(outputs.astype(jnp.float32), labels)

            self._compiled[name] = make_train_step(loss, self._transformation())
        return self._compiled[name]

    def _transformation(self) -> optax.GradientTransformation:
        """Return the optimizer as optax's own type: anything with its two functions is taken."""
        optimizer: Any = self.optimizer  # `refuse_untrainable` came first
        if isinstance(optimizer, (optax.GradientTransformation, optax.MultiSteps)):
            return cast(Any, optimizer)
        return optax.GradientTransformation(optimizer.init, optimizer.update)

    def _optimizer_state(self) -> Any:
        """Return the optimizer's state, a new one before the first step."""
        if self.optimizer_state is not None:
            return self.optimizer_state
        optimizer: Any = self.optimizer
        return optimizer.init(self.network.function().params)

    def follow(self, batches: list[Any], judge: Judge, *, training: bool = True) -> None:
        """Make one training step along the gradient of `judge(outputs)`, the outputs `[B, C]` of each batch."""
        assert self.optimizer is not None  # `refuse_untrainable` came first
        f = self.network.function()
        for x in batches:
            self._width(f, x)
        inputs = list(map(jnp.asarray, batches))
        outputs, pull, state = self._jitted(self._outputs_and_pull)(f, self._step_key(), inputs, training=training)
        value, weights = judge(list(map(np.asarray, outputs)))
        f, self.optimizer_state = self._jitted(self._followed)(
            replace(f, state=state), pull, weights, self._optimizer_state(), value
        )
        self.network.update(f)
        self.steps += 1

    def activations(self, x: Any, layer: Any, *, framework: bool = False) -> Any:
        """Return what a layer returns for the inputs: an array, or JAX's."""
        output = self._run(self._activations, x, layer=self._layer(layer), training=False)
        return output if framework else np.asarray(output)

    def activation_gradient(
        self, loss: Callable[[Any, Any], Any], x: np.ndarray, y: np.ndarray, layer: Any, *, training: bool = False
    ) -> np.ndarray:
        """Return the gradient in x of a loss of the activations of x and those of y at a layer."""
        run = functools.partial(self._run, self._activations, layer=self._layer(layer), training=training)
        return np.asarray(jax.grad(lambda leaf: loss(run(leaf), run(y)))(jnp.asarray(x)))

    def widest_layer(self, x: np.ndarray) -> int:
        """Return how many values the largest output of a layer has, for these inputs."""
        f = self.network.function()
        self._width(f, x)
        outputs = jax.eval_shape(f.structure.record, f.params, f.state, jnp.asarray(x))
        return max(math.prod(leaf.shape) for leaf in jax.tree.leaves(list(outputs.values())))

    def save(self, path: Path) -> None:
        """Write the variables to `<path>.variables.npz` and, once it is used, the optimizer's state."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tree(Path(f"{path}.variables.npz"), self.network.function())
        optimizer_file = Path(f"{path}.optimizer.npz")
        if self.optimizer_state is not None:
            save_tree(optimizer_file, self.optimizer_state)
        else:  # that of other weights
            optimizer_file.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Read what `save` wrote. The files hold only arrays: nothing in them is executed."""
        optimizer_state = None
        loaded = load_tree(Path(f"{path}.variables.npz"), self.network.function())
        optimizer_file = Path(f"{path}.optimizer.npz")
        if self.optimizer is not None and optimizer_file.exists():
            optimizer_state = load_tree(optimizer_file, self.optimizer.init(loaded.params))
        self.network.update(loaded)
        self.optimizer_state = optimizer_state

    def reset(self) -> None:
        """Draw all weights again and forget the optimizer's state."""
        self.network.redraw(self.next_key(), self.shape)
        self.optimizer_state = None

    def take_over(self, other: "FlaxBackend") -> None:
        """Go on where the training of another one, of the same module and optimizer, stands."""
        self.optimizer_state = other.optimizer_state
        self.steps = other.steps
        self.key = other.key

    def next_key(self) -> jax.Array:
        """Return a new key at every call."""
        self.key, key = jax.random.split(self.key)
        return key

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles are made of: no compiled code, and the rest in a form that can be copied."""
        return {"packed": pack({**self.__dict__, "_compiled": {}})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpack."""
        self.__dict__.update(unpack(state["packed"]))

    def _jitted(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return one of the functions below, compiled once. Its keyword-only arguments are static."""
        if run.__name__ not in self._compiled:
            parameters = inspect.signature(run).parameters.values()
            static = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
            self._compiled[run.__name__] = jax.jit(run, static_argnames=static)
        return self._compiled[run.__name__]

    def _run(self, run: Callable[..., Any], x: np.ndarray | jax.Array, *arrays: Any, **static: Any) -> Any:
        f = self.network.function()
        self._width(f, x)
        return self._jitted(run)(f, self._step_key(), x, *arrays, **static)

    def _step_key(self) -> jax.Array:
        """Return the key of the random numbers of a linen module, a new one after every step of training."""
        return self._jitted(self._fold_in)(self.key, self.steps)

    def _fold_in(self, key: jax.Array, step: jax.Array) -> jax.Array:
        # Compiled, since this takes a third of a millisecond otherwise, in each gradient.
        return jax.random.fold_in(key, step)

    def _outputs(self, f: FlaxFunction, key: jax.Array, x: jax.Array, training: bool) -> tuple[jax.Array, Any]:
        outputs, state = f.run(x, training=training, key=key)
        return outputs.astype(jnp.float32), state

    def _evaluate(self, f: FlaxFunction, x: jax.Array) -> jax.Array:
        return f(x)

    def _scores(self, f: FlaxFunction, key: jax.Array, x: jax.Array, *, training: bool) -> jax.Array:
        outputs, _ = self._outputs(f, key, x, training)
        return self.loss_function.columns(outputs) if outputs.shape[1] < self.classes else outputs

    def _scores_and_pull(self, f: FlaxFunction, key: jax.Array, x: jax.Array, *, training: bool) -> tuple[Any, Any]:
        """Return the scores and what makes a gradient of weights: both passes are compiled, in two parts."""
        return jax.vjp(lambda x: self._scores(f, key, x, training=training), x)

    def _pulled(self, pull: Callable[[jax.Array], tuple[jax.Array]], weights: jax.Array, *, copies: int) -> jax.Array:
        (gradient,) = pull(weights)
        return gradient.reshape(-1, copies, *gradient.shape[1:]).sum(axis=1)

    def _losses(
        self, f: FlaxFunction, key: jax.Array, x: jax.Array, labels: Any, *, reduction: str, training: bool
    ) -> jax.Array:
        return self.loss_function.reduced(self._outputs(f, key, x, training)[0], labels, reduction)

    def _loss_gradient(
        self, f: FlaxFunction, key: jax.Array, x: jax.Array, labels: jax.Array, *, training: bool
    ) -> jax.Array:
        return jax.grad(lambda x: self.loss_function(self._outputs(f, key, x, training)[0], labels))(x)

    def _activations(self, f: FlaxFunction, key: jax.Array, x: jax.Array, *, layer: str, training: bool) -> Any:
        recorded = f.structure.record(f.params, f.state, x, training=training, key=key)
        return first_array(recorded[layer,], layer)

    def _outputs_and_pull(
        self, f: FlaxFunction, key: jax.Array, batches: list[jax.Array], *, training: bool
    ) -> tuple[list[jax.Array], Any, Any]:
        """Return the outputs for batches that go through the module in turn, their pull-back, and the state after."""

        def run(params: Any) -> tuple[list[jax.Array], Any]:
            after = replace(f, params=params)
            outputs: list[jax.Array] = []
            for place, x in enumerate(batches):
                of_batch, state = self._outputs(after, jax.random.fold_in(key, place), x, training)
                outputs.append(self.loss_function.columns(of_batch) if of_batch.shape[1] < self.classes else of_batch)
                after = replace(after, state=state)
            return outputs, after.state

        outputs, pull, state = jax.vjp(run, f.params, has_aux=True)
        return outputs, pull, state

    def _followed(
        self, f: FlaxFunction, pull: Callable[[Any], Any], weights: list[jax.Array], optimizer_state: Any, value: Any
    ) -> tuple[FlaxFunction, Any]:
        """Return the module and the optimizer's state after a step along the pulled-back weights."""
        assert self.optimizer is not None
        (gradient,) = pull(list(map(jnp.asarray, weights)))
        try:
            updates, optimizer_state = optax.with_extra_args_support(self.optimizer).update(
                gradient, optimizer_state, f.params, value=value, grad=gradient
            )
        except TypeError as error:
            if "value_fn" not in str(error):
                raise
            raise TypeError(
                "the optimizer asks for the loss as a function, which there is none of for an objective: "
                "jaxsmooth.training.make_train_step has it"
            ) from error
        return replace(f, params=optax.apply_updates(f.params, updates)), optimizer_state

    def _width(self, f: FlaxFunction, x: np.ndarray | jax.Array) -> int:
        """Return how many outputs the module has for one input."""
        outputs = jax.eval_shape(self._jitted(self._evaluate), f, x)
        shape = outputs.shape[1:]
        if shape != (self.classes,) and (shape, self.classes) != ((1,), 2):
            got = ", ".join(map(str, ("N", *shape)))
            raise ValueError(f"the model must return [N, {self.classes}] for nb_classes, got [{got}]")
        return shape[0]

    def _labels(self, x: np.ndarray, y: Any) -> jax.Array:
        return jnp.asarray(self.loss_function.labels(y, len(x), self._width(self.network.function(), x)))

    def _layer(self, layer: Any) -> str:
        names = self.layer_names
        return names[layer_index(layer, names)]
