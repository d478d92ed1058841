"""One case: a function gets good arguments but for one or two odd ones, and refuses these by name or does its work."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

_REFUSALS = (ValueError, TypeError, IndexError)  # the last for layers


class Same(NamedTuple):
    """A value that means what the good one means, in another form: the result must be the same to the bit."""

    value: Any


class Subject(NamedTuple):
    """A function under test.

    Attributes:
        name: for the report.
        call: takes every argument by its name and does its work at once: no generator, no function.
        good: returns good arguments, new ones each time.
        odd: for each argument, functions that return odd values; `Same(value)` is one that means the same.
        holds: raises AssertionError where a result is not what is documented: what an odd argument that is accepted
            must still give.
        words: for each argument, what a refusal may call it beside its name.
        state: returns what a refusal must leave as it was.
    """

    name: str
    call: Callable[..., Any]
    good: Callable[[], dict[str, Any]]
    odd: Mapping[str, Sequence[Callable[[], Any]]]
    holds: Callable[[Any], None] = lambda _: None
    words: Mapping[str, Sequence[str]] = {}
    state: Callable[[dict[str, Any]], Any] = lambda _: None


def try_odd(subject: Subject, chosen: Mapping[str, Callable[[], Any]]) -> str:
    """Run one case and return "refused", "same" or "done".

    Raises:
        AssertionError: it is neither; the message says what the case was.
    """
    arguments = subject.good()
    values = {name: make() for name, make in chosen.items()}
    same = all(isinstance(value, Same) for value in values.values())
    odd = {name: value.value if isinstance(value, Same) else value for name, value in values.items()}
    case = f"{subject.name}({', '.join(f'{name}={_shown(value)}' for name, value in odd.items())})"
    before = subject.state({**arguments, **odd})
    refusal = result = None
    try:
        result = subject.call(**{**arguments, **odd})
    except _REFUSALS as error:
        refusal = error
    except Exception as error:
        raise AssertionError(f"{case} ended in {error!r}") from error
    if refusal is not None:
        assert not same, f"{case} was refused, though it means the same: {refusal!r}"
        words = [word for name in chosen for word in (name, *subject.words.get(name, ()))]
        assert any(word in str(refusal) for word in words), f"{case} was refused without its name: {refusal!r}"
        after = subject.state({**arguments, **odd})
        assert _equal(before, after), f"{case} was refused and left something half-changed"
        return "refused"
    try:
        subject.holds(result)
    except AssertionError as error:
        raise AssertionError(f"{case} gave {result!r}: {error}") from error
    if same:
        expected = subject.call(**subject.good())
        assert _equal(result, expected), f"{case} gave {result!r}, and the same in its usual form {expected!r}"
        return "same"
    return "done"


def _equal(one: Any, other: Any) -> bool:
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(map(_equal_leaves, leaves, others))


def _equal_leaves(one: Any, other: Any) -> bool:
    if isinstance(one, jax.Array) and jax.numpy.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    try:
        return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True))
    except TypeError:
        return one is other or one == other


def _shown(value: Any) -> str:
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"{type(value).__name__} {value.dtype}{list(value.shape)}"
    return repr(value)[:60]
