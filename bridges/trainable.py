"""Training with the signature of ART's PyTorch class."""

from typing import Any

from bridges.classifier import SmoothedClassifier
from bridges.inputs import refuse_keywords


class TrainableClassifier(SmoothedClassifier):
    """A smoothed classifier whose network is trained by an optimizer."""

    @property
    def optimizer(self) -> Any:
        """The optimizer, None if there is none."""
        raise NotImplementedError

    def fit(
        self,
        x: Any,
        y: Any,
        batch_size: int = 128,
        nb_epochs: int = 10,
        training_mode: bool = True,
        drop_last: bool = False,
        scheduler: Any = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        """Train the network on noisy inputs, with fresh noise in every batch.

        Args:
            x: inputs.
            y: labels.
            batch_size: rows in one training step.
            nb_epochs: number of passes, each in another order.
            training_mode: train in training mode (batch normalisation, dropout) or in evaluation mode.
            drop_last: leave out a last batch that is smaller.
            scheduler: called after every epoch: its `step()` in PyTorch, itself with the index of the epoch in flax.
            verbose: show a progress bar.

        Raises:
            ValueError: there is no optimizer, or an argument is not as described. TypeError: an unknown keyword.
        """
        refuse_keywords(kwargs)
        self._check_training()
        options = {"scheduler": scheduler, "verbose": verbose}
        self._fit_arrays(x, y, batch_size, nb_epochs, training_mode, drop_last, **options)

    def fit_generator(
        self,
        generator: Any,
        nb_epochs: int = 20,
        verbose: bool = False,
        training_mode: bool = True,
        scheduler: Any = None,
    ) -> None:
        """Train on noisy batches of a generator: a `DataLoader`, one of ART's, or any iterable of (x, y).

        Args:
            generator: gives batches; one epoch is one pass.
            nb_epochs: number of epochs.
            verbose: show a progress bar.
            training_mode, scheduler: as in `fit`.
        """
        self._check_training()
        self._fit_generator(generator, nb_epochs, training_mode, scheduler=scheduler, verbose=verbose)

    def _check_training(self) -> None:
        if self.optimizer is None:
            raise ValueError("an optimizer is needed to train: give it to the constructor")
