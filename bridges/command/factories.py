"""Factories that the command line names: `module:factory`, or `path/to/file.py:factory`."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "flax", "keras", "tensorflow", "equinox")
"""Whose models are known. Keras comes after PyTorch, which may run it."""

_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_factory(name: str) -> bool:
    """Whether a name is that of a factory, and not of a file or folder."""
    return ":" in name and not Path(name).exists()


class FactoryError(Exception):
    """The caller's own code failed; its error is the cause."""


def make(name: str, what: str) -> Any:
    """Return what a factory makes.

    Raises:
        ValueError: there is no such factory. FactoryError: it, or its module, raised something.
    """
    try:
        factory = _load(name, what)
        _refuse_arguments(factory, name, what)
        return factory()
    except _NoFactoryError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        raise FactoryError(f"{what} {name} raised {type(error).__name__}: {error}") from error


def _refuse_arguments(factory: Any, name: str, what: str) -> None:
    """Refuse what cannot be called without arguments: the function itself, in place of one that returns it."""
    try:
        parameters = inspect.signature(factory, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # not every callable shows its arguments
        return
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in _OPTIONAL]
    if needed:
        made = "the model" if what == "MODEL" else "the data"
        raise _NoFactoryError(
            f"{what} {name} must be a factory, a function without arguments that returns {made}: it has the arguments "
            f"{', '.join(needed)}"
        )


class _NoFactoryError(Exception):
    """There is no factory of this name."""


_entered: list[tuple[Path, set[str]]] = []
"""The folder of the last factory, and the modules that were there before it."""


def _enter(folder: Path) -> None:
    """Put a folder before all others on the path, where a factory finds its neighbours, also when it is called.

    Modules of the folder before it are forgotten: a `utils` of the one is not that of the other.
    """
    if _entered and _entered[-1][0] != folder:
        before, known = _entered[-1]
        tops = {name.partition(".")[0] for name in known}
        for name, module in list(sys.modules.items()):
            top = name.partition(".")[0]
            file = getattr(sys.modules.get(top), "__file__", None) or getattr(module, "__file__", None)
            if top not in tops and file and Path(file).resolve().parent in (before, before / top):
                del sys.modules[name]
    if not _entered or _entered[-1][0] != folder:
        _entered.append((folder, set(sys.modules)))
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def _load(name: str, what: str) -> Any:
    """Return the factory of `module:factory`, looked for in the working directory first, or of `file.py:factory`."""
    place, separator, attribute = name.rpartition(":")
    if not separator or not place or not attribute:
        raise _NoFactoryError(f"{what} must be module:factory or file.py:factory, got {name}")
    folder, module = Path.cwd(), place
    if place.endswith(".py"):
        file = Path(place).resolve()
        if not file.is_file():
            raise _NoFactoryError(f"{what} {name} cannot be loaded: there is no file {place}")
        folder, module = file.parent, file.stem
    _enter(folder)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that the user's own imports
        raise _NoFactoryError(f"{what} {name} cannot be loaded: there is no module {error.name} in {folder}") from None
    source = getattr(found, "__file__", None)
    if place.endswith(".py") and (source is None or Path(source).resolve() != Path(place).resolve()):
        raise _NoFactoryError(f"{what} {name} cannot be loaded: another module is called {module}, that of {source}")
    factory = getattr(found, attribute, None)
    packages = {base.__module__.split(".")[0] for base in type(factory).__mro__}
    if not isinstance(factory, type) and packages.intersection(PACKAGES):
        raise _NoFactoryError(
            f"{what} {name} must be a factory, a function without arguments that returns the model: {attribute} is the "
            f"{type(factory).__name__} itself"
        )
    if not callable(factory):
        raise _NoFactoryError(f"{what} {name} cannot be loaded: {source} has no function {attribute}")
    return factory
