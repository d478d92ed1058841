"""Convolutions in the one layout that XLA has fast code for in loops on a CPU.

XLA for CPUs (JAX 0.10) brings the convolutions of a program into that layout, but not those inside a loop. The
convolutions of a gradient have another layout, and in a loop they run 8 to 15 times slower.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


def canonical_convolutions(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function of arrays, its convolutions with transposed arguments and results on a CPU.

    Example:
        >>> def run(x, w):
        ...     return lax.conv(x, w, (1, 1), "SAME")
        >>> x, w = jnp.ones((2, 3, 5, 5)), jnp.ones((4, 3, 3, 3))
        >>> bool(jnp.allclose(canonical_convolutions(run)(x, w), run(x, w)))
        True
    """

    def canonical(*args: Any) -> Any:
        # Other backends choose layouts inside loops, too.
        if jax.default_backend() != "cpu":
            return run(*args)
        program, shapes = jax.make_jaxpr(run, return_shape=True)(*args)
        if "conv_general_dilated" not in str(program.jaxpr):
            return run(*args)
        outputs = _evaluate(program, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return canonical


def _evaluate(program: Any, *arrays: Any) -> list[Any]:
    """Run a program with its convolutions, and those of the programs within it, in the fast layout."""
    # An interpreter: it walks through the equations and keeps the value of each variable.
    values = dict(zip([*program.jaxpr.constvars, *program.jaxpr.invars], [*program.consts, *arrays], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in program.jaxpr.eqns:
        inputs = [value(atom) for atom in equation.invars]
        if equation.primitive.name == "conv_general_dilated":
            outputs = [_convolve(*inputs, **equation.params)]
        else:
            outputs = _apply(program.jaxpr, equation.replace(params=_rewritten(equation)), inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in program.jaxpr.outvars]


def _apply(whole: Any, equation: Any, inputs: list[Any]) -> list[Any]:
    """Run one equation of a program as a program of its own. So every kind of equation works."""
    taken = [not isinstance(atom, core.Literal) for atom in equation.invars]
    names = dict.fromkeys(atom for atom, take in zip(equation.invars, taken, strict=True) if take)
    arrays = {atom: array for atom, array, take in zip(equation.invars, inputs, taken, strict=True) if take}
    # A variable may be used twice, so the program takes each of them once.
    part = {"constvars": [], "invars": list(names), "outvars": equation.outvars, "eqns": [equation]}
    program = whole.replace(**part, effects=equation.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*(arrays[name] for name in names))


def _rewritten(equation: Any) -> dict[str, Any]:
    """Return the parameters of an equation with the programs among them rewritten; custom derivatives stay."""
    # Their rules are Python functions, which cannot be rewritten from here.
    if equation.primitive.name.startswith("custom_"):
        return equation.params
    return {name: _rewrite(value) for name, value in equation.params.items()}


def _rewrite(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return jax.make_jaxpr(lambda *arrays: _evaluate(value, *arrays))(*(v.aval for v in value.jaxpr.invars))
    if isinstance(value, core.Jaxpr):
        return _rewrite(core.ClosedJaxpr(value, ())).jaxpr
    if isinstance(value, tuple):
        return tuple(_rewrite(part) for part in value) if any(map(_is_program, value)) else value
    return value


def _is_program(value: Any) -> bool:
    return isinstance(value, (core.ClosedJaxpr, core.Jaxpr))


def _convolve(x: Any, kernel: Any, *, dimension_numbers: Any, batch_group_count: int, **params: Any) -> jax.Array:
    """Convolve with the batch first and the features last, the kernel's inputs and outputs last."""
    # The gradient of a grouped convolution. Its groups are along the batch, which the fast layout does not have.
    if batch_group_count > 1:
        numbers = {"dimension_numbers": dimension_numbers, "batch_group_count": batch_group_count}
        return lax.conv_general_dilated_p.bind(x, kernel, **numbers, **params)
    # Each of the three lists says at which axis of the array the batch, the features and the space are.
    (batch, feature, *space), (out, into, *window), result = dimension_numbers
    x = jnp.transpose(x, (batch, *space, feature))
    kernel = jnp.transpose(kernel, (*window, into, out))
    last = x.ndim - 1
    axes = (0, last, *range(1, last))
    kernel_axes = (last, last - 1, *range(last - 1))
    layout = lax.ConvDimensionNumbers(axes, kernel_axes, axes)
    y = lax.conv_general_dilated_p.bind(x, kernel, dimension_numbers=layout, batch_group_count=1, **params)
    # The inverse of the permutation that the result had.
    back = [0] * y.ndim
    for place, axis in zip(result, axes, strict=True):
        back[place] = axis
    return jnp.transpose(y, back)
