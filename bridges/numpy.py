"""ART's `NumpyRandomizedSmoothing`: any classifier that predicts arrays, smoothed. It needs no framework."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import jaxsmooth
from bridges.inputs import as_inputs, as_labels, one_hot, to_numpy
from bridges.settings import WithSettings
from bridges.smoothing import RandomizedSmoothingMixin, check_smoothing
from jaxsmooth.arguments import as_flag, as_integer, in_brief

_SETTINGS = ("classifier", "sample_size", "scale", "alpha")


def _of_classifier(name: str, default: Any = None) -> Any:
    """Return a property of the classifier that is smoothed."""
    return property(lambda smoothed: getattr(smoothed.classifier, name, default), doc=f"`{name}` of the classifier.")


class NumpyRandomizedSmoothing(WithSettings, RandomizedSmoothingMixin):
    """Any classifier, smoothed (Cohen et al. 2019, arXiv:1902.02918), with the interface of ART's class.

    See `RandomizedSmoothingMixin` for noise, predictions and certificates. Losses, gradients and activations are those
    of the classifier, without noise, where it has them.

    Args:
        classifier: one of ART's estimators, those of scikit-learn and XGBoost among them, or any object whose
            `predict(x)` returns scores `[N, nb_classes]` for an array, or class indices `[N]`. An estimator of
            scikit-learn is asked for `predict_proba`, or for its class; class i is the i-th of its `classes_`.
        sample_size, scale, alpha: votes, noise in the units of x, and failure probability.
        nb_classes: number of classes; by default what the classifier says, or else the width of its scores.
        seed, n0, output, check: see `RandomizedSmoothingMixin`.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> estimator = LogisticRegression().fit(x, x[:, 0] > 0)
        >>> smoothed = NumpyRandomizedSmoothing(estimator, sample_size=100, scale=0.5, seed=0)
        >>> smoothed.certify([[2.0, 0.0], [-1.0, 0.0]], n=1000)[0]
        array([1, 0])
    """

    parameters = _SETTINGS
    channels_first = _of_classifier("channels_first", default=False)
    clip_values = _of_classifier("clip_values")
    layer_names = _of_classifier("layer_names")
    model = _of_classifier("model")
    preprocessing = _of_classifier("preprocessing", default=(0.0, 1.0))
    preprocessing_defences = _of_classifier("preprocessing_defences")
    preprocessing_operations = _of_classifier("preprocessing_operations", default=())
    postprocessing_defences = _of_classifier("postprocessing_defences")

    def __init__(
        self,
        classifier: Any,
        sample_size: int,
        scale: float = 0.1,
        alpha: float = 0.001,
        *,
        nb_classes: int | None = None,
        seed: int | jax.Array | None = None,
        n0: int | None = None,
        output: str = "one_hot",
        check: bool = True,
    ) -> None:
        # The next class is ART's, where ART is loaded: its constructor is not called.
        key = jaxsmooth.key_of_seed(seed)
        as_flag("check", check)
        check_smoothing(sample_size, scale, alpha, n0, output)
        self._own_classes = None if nb_classes is None else as_integer("nb_classes", nb_classes, 2)
        self._begin(key, n0, output, check)
        self._take({"classifier": classifier, "sample_size": sample_size, "scale": scale, "alpha": alpha})

    @property
    def nb_classes(self) -> int | None:
        """Number of classes; None if it is not known before the first scores."""
        return self._nb_classes

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one input; None where the classifier does not say it."""
        return self._input_shape

    def _take(self, settings: Mapping[str, Any]) -> None:
        """Check all settings, then take them over."""
        classifier = settings["classifier"]
        sizes = {name: settings[name] for name in ("sample_size", "scale", "alpha")}
        sample_size, alpha = check_smoothing(**sizes, n0=self.n0, output=self.output)
        _prediction_of(classifier)
        shape = getattr(classifier, "input_shape", None)
        if classifier is not getattr(self, "classifier", None):
            self._was_checked = False
            said = getattr(classifier, "nb_classes", None) if self._own_classes is None else self._own_classes
            # ART says -1 where it does not know.
            self._nb_classes = None if said is None or said == -1 else as_integer("nb_classes", said, 2)
        self.classifier = classifier
        self.sample_size = sample_size
        self.scale = settings["scale"]
        self.alpha = alpha
        self._input_shape = None if not shape else tuple(shape)

    def fit(self, x: Any, y: Any, batch_size: int = 128, nb_epochs: int = 10, **kwargs: Any) -> None:
        """Train the classifier on noisy inputs.

        A classifier whose `fit` takes `nb_epochs`, as those of networks do, is trained epoch by epoch, each with fresh
        noise. Any other one starts over at each `fit`. It is fitted once, on `nb_epochs` noisy copies of each input.

        Args:
            x: inputs.
            y: labels, indices or one-hot rows.
            batch_size: rows in one training step, where the classifier takes it.
            nb_epochs: number of epochs, or of copies.
            **kwargs: go to the classifier's `fit`.
        """
        if "objective" in kwargs:
            raise TypeError(
                "objective must be left out: it needs a network, whose framework follows its gradient, as the classes "
                "of bridges.pytorch, bridges.tensorflow and bridges.flax do"
            )
        x = as_inputs(x, self._input_shape)
        y = self._labels(y, len(x))
        nb_epochs = as_integer("nb_epochs", nb_epochs, 0)
        fit = self._method("fit")
        if nb_epochs == 0:
            return
        if _takes(fit, "nb_epochs", by_name=True):
            for _ in range(nb_epochs):
                fit(self._add_training_noise(x), y, batch_size=batch_size, nb_epochs=1, **kwargs)
            return
        copies = np.concatenate([self._add_training_noise(x) for _ in range(nb_epochs)])
        if _takes(fit, "batch_size", by_name=True):
            kwargs["batch_size"] = batch_size
        fit(copies, np.concatenate([y] * nb_epochs), **kwargs)

    def _labels(self, y: Any, inputs: int) -> np.ndarray:
        """Return labels as the classifier's `fit` takes them."""
        labels = to_numpy("y", y)
        if len(labels) != inputs:
            raise ValueError(f"y must have one label for each of the {inputs} inputs, got {len(labels)}")
        if labels.ndim == 2 and labels.shape[1] > 1 and _is_of("sklearn", self.classifier):
            return as_labels(labels, inputs, labels.shape[1])  # rows are several labels of each input to it
        if labels.ndim == 1 and self._nb_classes is not None and _is_of("art", self.classifier):
            return one_hot(as_labels(labels, inputs, self._nb_classes), self._nb_classes)  # as all of ART's take them
        return labels

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Return the gradient in x of the classifier's loss, without noise."""
        return self._ask("loss_gradient", x=x, y=y, training_mode=training_mode, **kwargs)

    def class_gradient(self, x: Any, label: Any = None, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Return gradients in x of the classifier's outputs, without noise."""
        return self._ask("class_gradient", x=x, label=label, training_mode=training_mode, **kwargs)

    def compute_loss(self, x: Any, y: Any, **kwargs: Any) -> np.ndarray:
        """Return the classifier's loss, without noise."""
        return self._ask("compute_loss", x=x, y=y, **kwargs)

    def get_activations(self, x: Any, layer: Any, batch_size: int = 128, framework: bool = False) -> Any:
        """Return what a layer of the classifier returns."""
        return self._ask("get_activations", x=x, layer=layer, batch_size=batch_size, framework=framework)

    def save(self, filename: str, path: str | None = None) -> None:
        """Save the classifier by its own `save`."""
        self._ask("save", filename=filename, path=path)

    def _ask(self, name: str, **arguments: Any) -> Any:
        method = self._method(name)
        return method(**{key: value for key, value in arguments.items() if _takes(method, key)})

    def _method(self, name: str) -> Callable[..., Any]:
        method = getattr(self.classifier, name, None)
        if not callable(method):
            raise NotImplementedError(f"{type(self.classifier).__name__} has no {name}, which is asked of it")
        return method

    def _predict_classifier(self, x: np.ndarray, batch_size: int, training_mode: bool, **kwargs: Any) -> np.ndarray:
        predict = _prediction_of(self.classifier)
        settings: dict[str, Any] = {"batch_size": batch_size} if _takes(predict, "batch_size", by_name=True) else {}
        if training_mode or _takes(predict, "training_mode", by_name=True):
            settings["training_mode"] = training_mode
        scores = np.asarray(predict(x, **settings, **kwargs))
        if scores.ndim == 1 and scores.dtype.kind in "iu" and self._nb_classes is not None:
            scores = one_hot(as_labels(scores, len(x), self._nb_classes, "classes"), self._nb_classes)
        width = self._nb_classes or (scores.shape[1] if scores.ndim == 2 else 0)
        if scores.shape != (len(x), width) or width < 2:
            classes = "nb_classes" if self._nb_classes is None else self._nb_classes
            raise ValueError(
                f"the classifier must predict scores of shape ({len(x)}, {classes}), or class indices where nb_classes "
                f"is given, got shape {scores.shape} and dtype {scores.dtype}"
            )
        self._nb_classes = width
        return scores


def _prediction_of(classifier: Any) -> Callable[..., Any]:
    """Return the function of a classifier that scores inputs.

    An estimator of scikit-learn without probabilities is asked for its classes: a decision function may be of pairs.
    """
    expected = "classifier must be an object with predict(x), such as one of ART's,"
    if isinstance(classifier, type) or not callable(getattr(classifier, "predict", None)):
        raise TypeError(f"{expected} got {in_brief(classifier)}")
    if not _is_of("sklearn", classifier):
        return classifier.predict
    if getattr(classifier, "classes_", None) is None:
        raise TypeError(f"{expected} or a fitted classifier of scikit-learn, got {in_brief(classifier)}")
    if callable(own := getattr(classifier, "predict_proba", None)):
        return own
    classes = np.asarray(classifier.classes_)
    return lambda x: one_hot(np.searchsorted(classes, classifier.predict(x)), len(classes))


def _is_of(package: str, classifier: Any) -> bool:
    return any(base.__module__.startswith(f"{package}.") for base in type(classifier).__mro__)


def _takes(function: Callable[..., Any], name: str, *, by_name: bool = False) -> bool:
    """Return whether a function takes a keyword; by name only, or in its `**kwargs`, too."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == name or (not by_name and p.kind is p.VAR_KEYWORD) for p in parameters)
