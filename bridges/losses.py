"""The user's loss, read without changing it: what it takes for outputs and labels. One place for all frameworks."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from bridges.inputs import as_targets
from jaxsmooth.arguments import as_flag

LOGITS = "logits"
LOG_PROBABILITIES = "log-probabilities"
PROBABILITIES = "probabilities"


class Loss:
    """A loss of the network's outputs, or none.

    What outputs are is decided in this order: `from_logits`, the loss, the network (what it returns for some inputs, of
    one output what its last operation is), logits.

    Args:
        name: of the argument.
        function: the loss; None if there is none, for a classifier that is only certified.
        classes: number of classes.
        from_logits: whether the network returns logits or probabilities; None if the caller does not say.

    Attributes:
        last: what the network shows: one of the three words above, or None. It is found out if `needs_last`.
        needs_last: whether only the network can say what its outputs are, and it was not looked at.
    """

    binary_loss = "a binary cross-entropy"
    of = "outputs and labels"
    last: str | None = None
    _accepted: tuple[bool, bool] | None = None

    def __init__(self, name: str, function: Any, classes: int, from_logits: Any) -> None:
        if function is not None and (not callable(function) or isinstance(function, type)):
            raise TypeError(f"{name} must be a function of {self.of}, or a loss object, got {function!r}")
        self.function: Any = function
        self.classes = classes
        self.from_logits = None if from_logits is None else as_flag("from_logits", from_logits)
        read = self.read_by_loss()
        # Log-probabilities are logits, too.
        if (self.from_logits, read) in ((True, PROBABILITIES), (False, LOGITS)):
            raise ValueError(f"from_logits must be {read == LOGITS} or None for {function!r}, which takes {read}")
        self._only_network_says = self.from_logits is None and read is None
        self.needs_last = self._only_network_says

    def read_by_loss(self) -> str | None:
        """Return what the loss takes the outputs for; None if it does not say."""
        raise NotImplementedError

    @property
    def is_binary(self) -> bool | None:
        """Whether the loss is of one output for two classes; None if it is not known."""
        raise NotImplementedError

    @property
    def takes_indices(self) -> bool:
        """Whether the loss takes class indices."""
        raise NotImplementedError

    @property
    def takes_rows(self) -> bool:
        """Whether the loss takes one row of numbers for each input."""
        return not self.takes_indices

    def tried(self) -> tuple[bool, bool]:
        """Return whether a loss that is not known accepts class indices, and rows. It is tried once."""
        if self._accepted is None:
            self._accepted = self.try_labels()
        return self._accepted

    def try_labels(self) -> tuple[bool, bool]:
        """Try class indices, and rows, on scores that say nothing."""
        raise NotImplementedError

    @property
    def takes_signs(self) -> bool:
        """Whether labels are -1 and 1 in the rows that the loss takes, not 0 and 1."""
        return False

    @property
    def takes_log_rows(self) -> bool:
        """Whether the rows that the loss takes are log-probabilities."""
        return False

    def set_last(self, last: str | None) -> None:
        """Note what the network shows."""
        self.last = last
        self.needs_last = False

    def forget_last(self) -> None:
        """Forget what the network showed: its weights are other ones now."""
        self.needs_last = self._only_network_says

    @property
    def said(self) -> str | None:
        """What the outputs are; None if nothing says it."""
        read = self.read_by_loss() or self.last
        if self.from_logits is None or read == LOG_PROBABILITIES:
            return read
        return LOGITS if self.from_logits else PROBABILITIES

    @property
    def output(self) -> str:
        """What the outputs are."""
        return self.said or LOGITS

    def two_columns(self, outputs: Any, join: Callable[[list[Any]], Any]) -> Any:
        """Return the scores of two classes from the one output of a binary network.

        Args:
            outputs: `[N, 1]`.
            join: concatenates columns.

        Raises:
            ValueError: it is not known that the network is binary, or how its output is read.
        """
        if self.is_binary is False or self.said in (None, LOG_PROBABILITIES):
            raise ValueError(
                f"a model with one output needs {self.binary_loss} as its loss, or from_logits, which says how to read "
                f"it, got {self.function!r}"
            )
        if self.said == PROBABILITIES:
            return join([1 - outputs, outputs])
        # softmax(-s / 2, s / 2) is (1 - sigmoid(s), sigmoid(s)).
        return join([-outputs / 2, outputs / 2])

    def labels(self, y: Any, number: int, width: int) -> np.ndarray[Any, Any]:
        """Return labels in the form that the loss takes, for outputs `[number, width]`."""
        targets = as_targets(y, number, self.classes, width, indices=self.takes_indices, rows=self.takes_rows)
        if self.takes_log_rows and (targets > 0).any():
            raise ValueError("y must hold rows of log-probabilities, which this loss takes, got other numbers")
        return 2 * targets - 1 if self.takes_signs else targets

    def checked(self) -> Any:
        """Return the loss.

        Raises:
            TypeError: there is none.
        """
        if self.function is None:
            raise TypeError("a loss_object is needed for losses and their gradients: give it to the constructor")
        return self.function


def accepts(function: Callable[[Any, Any], Any], scores: Any, labels: Any) -> bool:
    """Return whether a loss takes such labels: whether it returns one number, or one for each row.

    The number of rows is another one than that of the columns, so that labels of one axis do not fit by broadcasting.

    Example:
        >>> import jax.numpy as jnp
        >>> scores, squared = jnp.zeros((4, 3)), lambda scores, rows: ((scores - rows) ** 2).sum()
        >>> accepts(squared, scores, jnp.zeros((4, 3))), accepts(squared, scores, jnp.zeros(4, int))
        (True, False)
    """
    try:
        value = function(scores, labels)
    except Exception:  # any: it is the user's
        return False
    return tuple(getattr(value, "shape", (0,))) in ((), (len(scores),), (len(scores), 1))


def kind_of_rows(rows: np.ndarray[Any, Any]) -> str | None:
    """Return what outputs of several classes are, by their numbers for a few different inputs.

    Logits do not add up to one, nor their exponentials, for each of several inputs.

    Example:
        >>> kind_of_rows(np.array([[0.25, 0.75], [0.5, 0.5]])), kind_of_rows(np.array([[0.25, 0.75], [1.0, 2.0]]))
        ('probabilities', None)
    """
    rows = np.asarray(rows, np.float64)
    if not np.isfinite(rows).all() or (rows == rows[:1]).all():
        return None  # rows that do not depend on the input may add up to one by chance
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        return PROBABILITIES
    if (rows <= 0).all() and np.allclose(np.exp(rows).sum(axis=1), 1, atol=1e-3):
        return LOG_PROBABILITIES
    return None


def unwrapped(function: Any) -> Any:
    """Return what a partial function is of, the object of a method that calls it, the function of a compiled one."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function) and function.__name__ in ("forward", "__call__", "call"):
            function = function.__self__
        elif type(function).__name__ == "PjitFunction":
            function = getattr(function, "__wrapped__", None)
        else:
            return function
