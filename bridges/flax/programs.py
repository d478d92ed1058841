"""What a compiled program says of a network."""

from typing import Any

from bridges.losses import PROBABILITIES

# Operations that change no number.
_SHAPES = ("convert_element_type", "reshape", "squeeze", "broadcast_in_dim", "copy", "transpose", "stop_gradient")


def last_operation(program: Any) -> str | None:
    """Return whether the first output of a program is that of a sigmoid, "probabilities", or None if it is not.

    Example:
        >>> import jax
        >>> x = jax.numpy.ones((1, 1))
        >>> [last_operation(jax.make_jaxpr(f)(x).jaxpr) for f in (jax.nn.sigmoid, jax.nn.log_sigmoid, jax.numpy.tanh)]
        ['probabilities', None, None]
    """
    makers = {output: equation for equation in program.eqns for output in equation.outvars}
    wanted = program.outvars[0]
    while (equation := makers.get(wanted)) is not None:
        if equation.primitive.name == "logistic":
            return PROBABILITIES
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None:
            return last_operation(getattr(inner, "jaxpr", inner))
        if equation.primitive.name not in _SHAPES:
            return None
        wanted = equation.invars[0]
    return None
