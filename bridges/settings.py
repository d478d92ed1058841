"""Classes whose settings are read and changed by name, and whose instances ART's tools accept."""

from abc import ABC
from collections.abc import Mapping
from typing import Any

from bridges.art import own_class, restore


class WithSettings(ABC):  # noqa: B024 (as ART's classes are, so that its tools may assign `__class__`)
    """An estimator in ART's sense: `get_params` and `set_params`, copies and pickles.

    Attributes:
        parameters: names of the settings that `get_params` returns and `set_params` takes.
        kept: names of attributes that are arguments of the constructor, too, and that `set_params` does not change.
    """

    parameters: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance that ART's attacks accept, if ART is loaded."""
        del args, kwargs
        return restore(cls)

    def __reduce__(self) -> Any:
        """Copy and pickle as our own class, whether or not ART is loaded."""
        return restore, (own_class(type(self)),), self.__getstate__()

    @property
    def estimator_params(self) -> list[str]:
        """Names of the settings that `get_params` returns and `set_params` takes."""
        return list(self.parameters)

    def get_params(self) -> dict[str, Any]:
        """Return the settings by name. `set_params(**get_params())` changes nothing."""
        return {name: getattr(self, name) for name in self.parameters}

    def set_params(self, **kwargs: Any) -> None:
        """Change settings, all or none: all are checked as by the constructor before any is taken over.

        Raises:
            ValueError: an unknown name. ValueError, TypeError: as the constructor.
        """
        unknown = sorted(set(kwargs) - set(self.parameters))
        if unknown:
            raise ValueError(f"unknown parameters {unknown}: expected some of {sorted(self.parameters)}")
        kept = {name: getattr(self, name) for name in self.kept}
        self._take({**self.get_params(), **kept, **kwargs})

    def _take(self, settings: Mapping[str, Any]) -> None:
        """Check all settings, then take them over."""
        raise NotImplementedError
