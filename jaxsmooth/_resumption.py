"""Whether a run goes on from files of its own: the same inputs, labels and classifier."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxsmooth._claims import input_digest
from jaxsmooth.datasets import Item
from jaxsmooth.stores import OtherRunError, VoteRow

VOTE_AGAIN = 4  # finished inputs of each file


class Resumption:
    """What a run compares before it goes on.

    A digest in the file tells inputs and labels. A classifier whose weights can be seen is told by their digest in the
    header. No digest shows all that a classifier computes with. So each votes again on some inputs: those whose
    selection votes were closest, on which two classifiers differ most easily.

    Args:
        files: the finished inputs of each file that is read. Each is compared for itself, since each may be of another
            classifier.
        select: from inputs `[N, *event]` and their ids to their selection votes.
        is_settled: whether a stored row needs no more votes; None where every row is like that.
        like: what all inputs have in common.
    """

    def __init__(
        self,
        files: Sequence[Sequence[VoteRow]],
        select: Callable[[np.ndarray, np.ndarray], np.ndarray],
        is_settled: Callable[[VoteRow], bool] | None,
        like: dict[str, Any],
    ) -> None:
        self._files = files
        self._done = {row.idx: row for rows in files for row in rows}
        self._file = {row.idx: place for place, rows in enumerate(files) for row in rows}
        self._select = select
        self._is_settled = is_settled
        self._like = like
        self._closest: list[list[tuple[tuple[int, int], int, np.ndarray]]] = [[] for _ in files]
        self._has_voted = [False for _ in files]

    def compared(self, items: Iterator[Item], at: Callable[[int], Item] | None) -> Iterator[Item]:
        """Return the same items, once the finished ones were compared.

        Where the data are indexed, that is now, with some inputs of every file that are not among the items: those of
        other processes. Of an iterable, the finished inputs at its beginning are compared now, and others when they
        come.

        Args:
            items: the inputs of this process, in order.
            at: loads any input of indexed data; None for an iterable.

        Raises:
            OtherRunError: an input, a label, the classifier or the condition of a mode is another one.
        """
        if at is not None:
            kept = list(items)
            own = {item.idx for item in kept}
            others = {
                row.idx
                for rows in self._files
                for row in sorted(rows, key=lambda row: (_margin(row), row.input))[:VOTE_AGAIN]
            }
            # The last one, too, in case the data have become fewer.
            others |= {max(row.idx for row in rows) for rows in self._files if rows}
            for item in [*kept, *(at(idx) for idx in sorted(others - own))]:
                if item.idx in self._done:
                    self._compare(item)
            self._vote_again()
            return iter(kept)
        head: list[Item] = []
        following: list[Item] = []
        for item in items:
            if item.idx not in self._done:
                following.append(item)
                break
            self._compare(item)
            head.append(item._replace(get=_loaded_before))  # so that no input is kept in memory
        self._vote_again()
        return itertools.chain(head, following, self._compared_later(items))

    def _compared_later(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            if item.idx in self._done:
                self._compare(item)
                self._vote_again()
            yield item

    def _compare(self, item: Item) -> None:
        """Refuse an input that is not that of the file."""
        row = self._done[item.idx]
        try:
            x, label = item.load(self._like)
        except IndexError:
            raise OtherRunError(
                f"data must be those of the run: input {item.idx} is in the file of votes and not in the data"
            ) from None
        if input_digest(x) != row.input:
            raise OtherRunError(
                f"data must be those of the run: input {item.idx} is another one than in the file of votes"
            )
        if label != row.label:
            raise OtherRunError(
                f"data must be those of the run: the label of input {item.idx} is {row.label} in the file, {label} now"
            )
        if self._is_settled is not None and not self._is_settled(row):
            raise OtherRunError(
                f"mode must be that of the run: input {item.idx} has {row.n} votes in the file, where `until` is false"
            )
        closest = self._closest[self._file[item.idx]]
        # Among equal margins by the digest: the first inputs of a data set may be of one kind.
        closest.append(((_margin(row), row.input), item.idx, x))
        closest.sort(key=lambda entry: entry[:2])
        del closest[VOTE_AGAIN:]

    def _vote_again(self) -> None:
        """Refuse a classifier that votes otherwise than in the file."""
        chosen = [
            entry for place, closest in enumerate(self._closest) if not self._has_voted[place] for entry in closest
        ]
        if not chosen:
            return
        self._has_voted = [
            voted or bool(closest) for voted, closest in zip(self._has_voted, self._closest, strict=True)
        ]
        ids = np.array([idx for _, idx, _ in chosen])
        selection = self._select(np.stack([x for *_, x in chosen]), ids)
        for idx, votes in zip(ids.tolist(), selection, strict=True):
            refuse_other_votes(idx, self._done[idx].selection, votes)


def refuse_other_votes(idx: int, before: np.ndarray, votes: np.ndarray) -> None:
    """Refuse a classifier whose selection votes on an input are not those in the file."""
    if not np.array_equal(before, votes):
        differs = (before != votes).any(axis=-1)
        at = np.unravel_index(np.argmax(differs), differs.shape)  # of several components, the first that differs
        place = f" at component {tuple(map(int, at))}" if at else ""
        raise OtherRunError(
            f"f must be the classifier of the run, on such a machine: input {idx} got the selection votes "
            f"{before[at].tolist()} in the file{place}, and now {votes[at].tolist()}"
        )


def _margin(row: VoteRow) -> int:
    """Return by how many selection votes the class leads; of several components, in the closest one."""
    votes = np.sort(row.selection, axis=-1)
    return int((votes[..., -1] - votes[..., -2]).min())


def _loaded_before() -> Any:
    raise AssertionError("a finished input is not loaded again")
