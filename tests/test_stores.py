"""The file of votes: what is written is read, torn ends are cut off, all other damage is an error."""

import errno
import io
import json
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from jaxsmooth.stores import VoteHeader, VoteRow, VoteStore, read_votes

SETTINGS = {"sigma": 0.5, "radii": [0.25, 0.5], "key": [0, 7]}
HEADER = VoteHeader(SETTINGS, (3,))


def row(idx, votes=(2, 3)):
    votes = np.array([idx, *votes], np.int32)
    radius, p_lower = (float(np.float32(value) * np.float32(idx)) for value in (0.1, 0.01))
    return VoteRow(idx, idx % 3, -1, radius, p_lower, 0.25, 100 + idx, 0.5, 2**62 + idx, votes, 2 * votes)


def filled(path, number=5, header=HEADER):
    with VoteStore(path, header) as store:
        for idx in range(number):
            store.append(row(idx))
    return path


def same(rows, number):
    assert [r[:9] for r in rows] == [row(idx)[:9] for idx in range(number)]
    for found, expected in zip(rows, map(row, range(number)), strict=True):
        np.testing.assert_array_equal(found.selection, expected.selection)
        np.testing.assert_array_equal(found.counts, expected.counts)


def sizes(tmp_path):
    """Return how many bytes the header of `filled` takes, and each of its records."""
    header, one = (filled(tmp_path / f"of_{number}.votes", number).stat().st_size for number in (0, 1))
    return header, one - header


def test_what_is_written_is_read_and_gone_on_from(tmp_path):
    path = filled(tmp_path / "a.votes")
    header, rows = VoteStore.read(path)
    assert header == HEADER
    same(rows, 5)
    with VoteStore(path, HEADER) as store:
        same(store.rows, 5)
        store.append(row(5))
    same(VoteStore.read(path)[1], 6)


def test_a_run_that_is_read_has_what_was_decided_and_votes_that_say_how_they_were_drawn(tmp_path):
    run = read_votes(filled(tmp_path / "a.votes", header=HEADER._replace(rule="grid")))
    assert run.settings == SETTINGS
    assert run.votes.rule == "grid"
    expected = [row(idx) for idx in range(5)]
    columns = {"idx": run.idx, "label": run.truth, "seconds": run.seconds, "n": run.votes.n, "lost": run.votes.lost}
    certificate = run.certificate
    columns |= {"predict": certificate.label, "radius": certificate.radius, "p_lower": certificate.p_lower}
    columns |= {"selection": run.votes.selection, "counts": run.votes.counts}
    for name, column in columns.items():
        np.testing.assert_array_equal(column, [getattr(r, name) for r in expected])
    assert run.certificate.rounded.all()


def test_selection_votes_that_chose_no_class_are_not_taken_for_such(tmp_path):
    """A file of predictions: its selection votes are among the others and would not be independent of them."""
    assert read_votes(filled(tmp_path / "a.votes", header=HEADER._replace(selects=False))).votes.selection is None
    assert read_votes(filled(tmp_path / "b.votes")).votes.selection is not None


def test_noise_that_does_not_round_leaves_no_loss(tmp_path):
    with VoteStore(tmp_path / "a.votes", HEADER) as store:
        for idx in range(3):
            store.append(row(idx)._replace(lost=math.nan))
    run = read_votes(tmp_path / "a.votes")
    assert run.votes.lost is None
    assert not run.certificate.rounded.any()


def test_components_keep_their_axes(tmp_path):
    path, header = tmp_path / "a.votes", VoteHeader(SETTINGS, row=(2, 3, 4))
    counts = np.random.default_rng(0).integers(0, 100, (5, 2, 3, 4)).astype(np.int32)
    with VoteStore(path, header) as store:
        for idx in range(5):
            store.append(row(idx)._replace(selection=counts[idx], counts=2 * counts[idx]))
    run = read_votes(path)
    np.testing.assert_array_equal(run.votes.selection, counts)
    np.testing.assert_array_equal(run.votes.counts, 2 * counts)
    assert run.votes.components == 6
    with pytest.raises(ValueError, match="was made under other settings"):
        VoteStore(path, header._replace(row=(3, 2, 4)))
    with VoteStore(path, header) as store, pytest.raises(ValueError, match="broadcast"):
        store.append(row(5)._replace(counts=np.zeros((3, 2, 4), np.int32)))


def test_a_file_without_records_is_a_run_of_no_inputs(tmp_path):
    run = read_votes(filled(tmp_path / "a.votes", 0))
    assert run.votes.counts.shape == run.votes.selection.shape == (0, 3)
    assert run.certificate.label.shape == run.idx.shape == (0,)


def test_a_file_cut_off_at_any_byte_goes_on_from_its_last_whole_record(tmp_path):
    whole = filled(tmp_path / "whole.votes").read_bytes()
    header, size = sizes(tmp_path)
    assert len(whole) == header + 5 * size
    for length in range(len(whole) + 1):
        path = tmp_path / "cut.votes"
        path.write_bytes(whole[:length])
        kept = max(0, (length - header) // size)
        with VoteStore(path, HEADER) as store:
            same(store.rows, kept)
            for idx in range(kept, 5):
                store.append(row(idx))
        assert path.read_bytes() == whole
        path.unlink()


def test_a_damaged_record_costs_that_record_and_those_after_it(tmp_path):
    path = filled(tmp_path / "a.votes")
    data, (_, size) = path.read_bytes(), sizes(tmp_path)
    path.write_bytes(data[:-size] + bytes(size - 1) + b"\1")
    same(VoteStore.read(path)[1], 4)
    damaged = data[: -2 * size + 3] + b"\xff" + data[-2 * size + 4 :]
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="is damaged in record 3 of 5; those before it are whole"):
        assert len(read_votes(path).idx) == 3
    assert path.read_bytes() == damaged
    with pytest.warns(UserWarning, match=r"record 3 of 5; it is kept as a\.votes\.damaged, and the run goes on"):
        store = VoteStore(path, HEADER)
    assert (tmp_path / "a.votes.damaged").read_bytes() == damaged
    same(store.rows, 3)
    for idx in (3, 4):
        store.append(row(idx))
    store.close()
    assert path.read_bytes() == data


def test_one_process_writes_at_a_time(tmp_path):
    path = filled(tmp_path / "a.votes")
    before = path.read_bytes()
    code = f"""
from jaxsmooth.stores import VoteHeader, VoteStore
store = VoteStore({str(path)!r}, VoteHeader({SETTINGS!r}, (3,)))
print("open", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(BlockingIOError, match=rf"a\.votes is being written by process {other.pid} on"):
            VoteStore(path, HEADER)
        same(VoteStore.read(path)[1], 5)  # anyone may read
        other.kill()  # a process that dies does not keep the lock
        other.wait(60)
    with VoteStore(path, HEADER) as store:
        with pytest.raises(BlockingIOError, match="is being written by process"):  # nor two of one process
            VoteStore(path, HEADER)
        VoteStore.read(path)
        with pytest.raises(BlockingIOError):
            VoteStore(path, HEADER)
        # Nor did the refused ones let another process in.
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as other:
            assert f"BlockingIOError: {path} is being written by process {os.getpid()}" in other.communicate()[1]
        store.append(row(5))
    assert path.read_bytes()[: len(before)] == before
    same(VoteStore.read(path)[1], 6)


def test_what_differs_is_named(tmp_path):
    versions = {"jax": "1", "numpy": "1"}
    path = filled(tmp_path / "a.votes", header=VoteHeader({**SETTINGS, "n": 100_000, "versions": versions}, (3,)))
    other = VoteHeader({**SETTINGS, "n": 5000, "versions": {**versions, "jax": "2"}, "bound": "cohen"}, (3,))
    expected = (
        r"other settings: n: 100000 in the file, 5000 now; versions\.jax: 1 in the file, 2 now; bound: None in the"
    )
    with pytest.raises(ValueError, match=expected):
        VoteStore(path, other)
    newer = VoteHeader({**SETTINGS, "n": 100_000, "versions": {**versions, "numpy": "2"}}, (3,))
    with pytest.warns(UserWarning, match=r"versions\.numpy: 1 in the file, 2 now\. Votes do not depend on it"):
        VoteStore(path, newer).close()


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {**SETTINGS, "sigma": 0.25}},
        {"settings": {"sigma": 0.5}},
        {"row": (4,)},
        {"row": (1, 3)},
        {"rule": "grid"},
        {"selects": False},
    ],
)
def test_another_header_is_refused_and_the_file_is_left_alone(tmp_path, changes):
    path = filled(tmp_path / "a.votes")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="was made under other settings"):
        VoteStore(path, HEADER._replace(**changes))
    assert path.read_bytes() == before


FORMAT = b"jaxsmooth votes 4\n"
OTHERS = [b"idx\tlabel\n", b"\0" * 100, b"jaxsmooth votes 1\n{]\n", b"jaxsmooth votes 1\n{}\n"]
OTHERS += [FORMAT + b"{]\n", FORMAT + b"{}\n", FORMAT + b"{} 00000000\n", FORMAT + b"\n"]


@pytest.mark.parametrize("data", OTHERS)
def test_other_files_are_refused_and_left_alone(tmp_path, data):
    path = tmp_path / "a.votes"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.votes"):
        VoteStore(path, HEADER)
    assert path.read_bytes() == data


CRAFTED = [
    {"settings": [1]},
    {"settings": None},
    {"row": [1.5, 2]},
    {"row": [-1, -3]},
    {"row": []},
    {"row": 3},
    {"row": [2**40, 2**40]},
    {"row": [2**31]},
    {"row": [True]},
    {"rule": 1},
    {"selects": "no"},
]


@pytest.mark.parametrize("changes", CRAFTED, ids=str)
def test_a_crafted_header_is_a_value_error(tmp_path, changes):
    """Its checksum is right: whoever writes a file can compute it."""
    body = json.dumps({**HEADER._asdict(), **changes}, sort_keys=True).encode()
    path = tmp_path / "a.votes"
    path.write_bytes(FORMAT + body + b" %08x\n" % zlib.crc32(body) + bytes(100))
    for run in (lambda: read_votes(path), lambda: VoteStore(path, HEADER)):
        with pytest.raises(ValueError, match=r"a\.votes"):
            run()


@pytest.mark.parametrize("place", range(10, 60, 7))
def test_a_header_with_a_bent_byte_is_an_error(tmp_path, place):
    path = filled(tmp_path / "a.votes")
    data = bytearray(path.read_bytes())
    data[place] ^= 0x15
    path.write_bytes(data)
    for run in (lambda: read_votes(path), lambda: VoteStore(path, HEADER)):
        with pytest.raises(ValueError, match=r"a\.votes"):
            run()
    assert path.read_bytes() == bytes(data)


class FullDisk(io.FileIO):
    """A file on a disk that becomes full: a write fails, or takes only part of what it is given."""

    fails = None

    def write(self, data):
        if self.fails == "short write":
            return super().write(data[:10])
        if self.fails == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("fails", ["write", "fsync", "short write"])
def test_a_full_disk_is_an_error_and_leaves_the_records_before(tmp_path, monkeypatch, fails):
    path = filled(tmp_path / "a.votes", 2)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: FullDisk(path, "r+b"))
    with VoteStore(path, HEADER) as store:
        with monkeypatch.context() as disk:
            disk.setattr(FullDisk, "fails", fails)
            if fails == "fsync":
                disk.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=r"No space left|took only part"):
                store.append(row(2))
        assert os.stat(path).st_size == len(before)
        store.append(row(2))
    monkeypatch.undo()
    assert path.read_bytes().startswith(before)
    same(VoteStore.read(path)[1], 3)
