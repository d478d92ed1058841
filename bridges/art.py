"""Let ART's attacks accept our classes, where ART is loaded. This never imports ART by itself.

ART checks that its own classes are among an estimator's bases. So once the program has imported ART, instances of our
classes are made from a joined class: ours first, then ART's class of the same name, or, where ART has none, the classes
that its attacks ask for. ART's constructor is not called, every public name resolves to our code, and the private names
that ART's tools read and set are views of ours.
"""

import copy
import sys
from typing import Any

# ART's private name: ours, and the argument of `set_params` that setting it changes.
_VIEWS = {
    "_device": ("device", None),
    "_layer_names": ("layer_names", None),
    "_loss": ("loss", "loss"),
    "_loss_object": ("loss_object", "loss_object"),
    "_model": ("_model_for_art", "model"),
    "_optimizer": ("optimizer", "optimizer"),
    "_reduce_labels": ("_takes_indices", None),
    "_use_amp": ("use_amp", None),
}
_JOINED: dict[type, type] = {}


def instance_class(cls: type) -> type:
    """Return the class that an instance of ours is made from: joined with ART's namesake if ART is loaded."""
    smoothing = sys.modules.get("art.estimators.certification.randomized_smoothing")
    if smoothing is None:
        return cls
    bases = _art_bases(smoothing, _public(cls).__name__)
    if any(issubclass(cls, base) for base in bases):
        return cls
    if cls not in _JOINED:
        names: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__qualname__": cls.__qualname__}
        names |= {view: _view(view, *ours) for view, ours in _VIEWS.items() if hasattr(cls, ours[0])}
        _JOINED[cls] = type(bases[-1])(cls.__name__, (cls, *bases), names)
    return _JOINED[cls]


def _view(view: str, name: str, argument: str | None) -> property:
    """Return a property for a private name of ART's.

    ART's tools also set such names, to None or to what they put in the place of ours. What was set is what is read
    then. Where it is an argument of ours, our class takes it over.
    """

    def read(classifier: Any) -> Any:
        return vars(classifier).get(f"_art{view}", getattr(classifier, name))

    def write(classifier: Any, value: Any) -> None:
        vars(classifier)[f"_art{view}"] = value
        if argument is not None and value is not None:
            classifier.set_params(**{argument: getattr(value, "module_of_ours", value)})
            vars(classifier).pop(f"_art{view}")

    return property(read, write)


def _art_bases(smoothing: Any, name: str) -> tuple[type, ...]:
    """Return ART's class of this name, or the classes that ART's attacks ask for."""
    if isinstance(namesake := getattr(smoothing, name, None), type):
        return (namesake,)
    from art.estimators.classification import ClassGradientsMixin, ClassifierMixin
    from art.estimators.estimator import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin

    return ClassGradientsMixin, ClassifierMixin, NeuralNetworkMixin, LossGradientsMixin, BaseEstimator


def as_art(classifier: Any) -> Any:
    """Return a classifier that ART's attacks accept, which shares everything with one that was made before ART came.

    Raises:
        RuntimeError: ART's randomized smoothing has not been imported.
    """
    cls = instance_class(type(classifier))
    if cls is type(classifier) and cls not in _JOINED.values():
        raise RuntimeError("import art.estimators.certification.randomized_smoothing first")
    upgraded = copy.copy(classifier)
    upgraded.__class__ = cls
    return upgraded


def own_class(cls: type) -> type:
    """Return our own class of a joined one."""
    return next((own for own, joined in _JOINED.items() if joined is cls), cls)


def _public(cls: type) -> type:
    """Return the class of ours that a user's subclass derives from."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("bridges."))


def restore(cls: type) -> Any:
    """Make an instance without its attributes: for copies and pickles."""
    return object.__new__(instance_class(cls))
