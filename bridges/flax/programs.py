"""What a compiled program says of a network."""

from typing import Any

from bridges.losses import LOG_PROBABILITIES, PROBABILITIES

# Operations that change no number.
_SHAPES = ("convert_element_type", "reshape", "squeeze", "broadcast_in_dim", "copy", "transpose", "stop_gradient")
# Functions of jax.nn, by the names of their programs.
_NAMES = {"log_softmax": LOG_PROBABILITIES, "softmax": PROBABILITIES, "sigmoid": PROBABILITIES}


def last_operation(program: Any) -> str | None:
    """Return what the last operation of a program, its first output, makes; None if it is no known one.

    Example:
        >>> import jax
        >>> x = jax.numpy.ones((1, 3))
        >>> [last_operation(jax.make_jaxpr(f)(x).jaxpr) for f in (jax.nn.softmax, jax.nn.log_softmax, jax.numpy.tanh)]
        ['probabilities', 'log-probabilities', None]
    """
    makers = {output: equation for equation in program.eqns for output in equation.outvars}
    wanted = program.outvars[0]
    while True:
        equation = makers.get(wanted) if hasattr(wanted, "count") or wanted in makers else None
        if equation is None:
            return None
        name = equation.primitive.name
        if name == "logistic":
            return PROBABILITIES
        if name in _SHAPES:
            wanted = equation.invars[0]
            continue
        if name == "div":  # exp(x) / sum(exp(x))
            top = makers.get(equation.invars[0])
            return PROBABILITIES if top is not None and top.primitive.name == "exp" else None
        if name == "sub":  # x - log(sum(exp(x)))
            under = makers.get(equation.invars[1])
            return LOG_PROBABILITIES if under is not None and under.primitive.name == "log" else None
        said = str(equation.params.get("name", ""))
        for known, made in _NAMES.items():
            if known in said:
                return made
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None:
            return None
        return last_operation(getattr(inner, "jaxpr", inner))
