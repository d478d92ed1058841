"""The layers of flax modules: their outputs by path, fresh variables."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

Path = tuple[str, ...]


def record_linen(run: Callable[[], Any]) -> dict[Path, Any]:
    """Return what each linen module that is called in `run` returns, by its path, in the order of first calls."""
    outputs: dict[Path, Any] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__":
            outputs.setdefault(context.module.path, None)
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            outputs[context.module.path] = output
        return output

    with linen.intercept_methods(intercept):
        run()
    return outputs


def record_nnx(module: nnx.Module, run: Callable[[], Any]) -> dict[Path, Any]:
    """Return what each layer of an nnx module returns in `run`, by its path. The module is spent by it."""
    outputs: dict[Path, Any] = {}

    def recording(path: Path, call: Any) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            outputs.setdefault(path, None)
            outputs[path] = call(*args, **kwargs)
            return outputs[path]

        return record

    for path, layer, replace in list(_nnx_layers(module, ())):
        if isinstance(layer, nnx.Module):
            kind: Any = type(layer)
            # Calls look __call__ up on the class, and a subclass passes every isinstance that the class passes.
            noting = type(kind)(kind.__name__, (kind,), {"__call__": recording(path, kind.__call__)})
            object.__setattr__(layer, "__class__", noting)
        else:
            replace(recording(path, layer))
    outputs[()] = run()
    return outputs


def _nnx_layers(module: Any, path: Path, prefix: str = "") -> Iterator[tuple[Path, Any, Callable[[Any], None]]]:
    """Return path, layer and a function that replaces it for all layers of a module; those of a list are its own."""
    entries: Any = module
    within_list = isinstance(module, nnx.List)
    items = enumerate(module) if within_list else list(vars(module).items())
    for name, value in items:
        own = (*path, f"{prefix}{name}")
        if isinstance(value, nnx.List):
            plain = isinstance(module, nnx.Sequential) and name == "layers"
            yield from _nnx_layers(value, path, "" if plain else f"{prefix}{name}.")
        elif isinstance(value, nnx.Module) and callable(value):
            yield own, value, lambda _: None
            yield from _nnx_layers(value, own)
        elif within_list and callable(value):
            yield own, value, lambda new, i=name: entries.__setitem__(i, new)


def redrawn(module: nnx.Module, key: jax.Array) -> Iterator[tuple[Any, jax.Array]]:
    """Return every variable of a module, random streams apart, with a fresh value.

    A module whose constructor's arguments are among its attributes, as those of flax's layers are, gets the variables
    of a new one, with flax's default initialisers. Parameters that belong to no such module are drawn uniformly within
    1 / sqrt(fan in), as PyTorch draws a linear layer's.
    """
    rngs = nnx.Rngs(key)
    for _, part in nnx.iter_modules(module):
        own = {
            name: value
            for name, value in vars(part).items()
            if isinstance(value, nnx.Variable) and not isinstance(value, nnx.RngState)
        }
        fresh = _rebuilt(part, rngs) if own else None
        for name, variable in own.items():
            value = variable.get_value()
            new = getattr(fresh, name, None)
            if isinstance(new, nnx.Variable) and new.get_value().shape == value.shape:
                yield variable, new.get_value().astype(value.dtype)
            elif isinstance(variable, nnx.Param):
                bound = (value[..., 0].size if value.ndim > 1 else max(1, value.size)) ** -0.5
                yield variable, jax.random.uniform(rngs.params(), value.shape, value.dtype, -bound, bound)
            else:
                yield variable, jnp.zeros_like(value)


def _rebuilt(part: Any, rngs: nnx.Rngs) -> Any:
    """Return a new layer of the same settings; None if its settings do not tell how to make one."""
    names = inspect.signature(type(part).__init__).parameters
    settings = {name: getattr(part, name) for name in names if name != "rngs" and hasattr(part, name)}
    try:
        return type(part)(**settings, rngs=rngs)
    except (TypeError, ValueError):
        return None
