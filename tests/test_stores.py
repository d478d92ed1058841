"""The file of votes: what is written is read, torn ends are cut off, all other damage is an error."""

import errno

import numpy as np
import pytest

from jaxsmooth import stores
from jaxsmooth.stores import StoredVotes, VoteStore, read_votes

SETTINGS = {"sigma": 0.5, "radii": [0.25, 0.5], "key": [0, 7]}


def row(idx):
    votes = np.array([idx, 2, 3], np.int32)
    return StoredVotes(idx, idx % 3, -1, float(np.float32(0.1) * idx), 0.25, 100 + idx, votes, 2 * votes)


def filled(path, number=5):
    with VoteStore(path, SETTINGS, 3) as store:
        for idx in range(number):
            store.append(row(idx))
    return path


def same(rows, number):
    assert [r[:6] for r in rows] == [row(idx)[:6] for idx in range(number)]
    for found, expected in zip(rows, map(row, range(number)), strict=True):
        np.testing.assert_array_equal(found.selection, expected.selection)
        np.testing.assert_array_equal(found.counts, expected.counts)


def test_what_is_written_is_read_and_gone_on_from(tmp_path):
    path = filled(tmp_path / "a.votes")
    settings, rows = read_votes(path)
    assert settings == SETTINGS
    same(rows, 5)
    with VoteStore(path, SETTINGS, 3) as store:
        same(store.rows, 5)
        store.append(row(5))
    same(read_votes(path)[1], 6)


def test_a_file_cut_off_at_any_byte_goes_on_from_its_last_whole_record(tmp_path):
    whole = filled(tmp_path / "whole.votes").read_bytes()
    size = stores._record_type(3).itemsize
    header = len(whole) - 5 * size
    for length in range(len(whole) + 1):
        path = tmp_path / "cut.votes"
        path.write_bytes(whole[:length])
        kept = max(0, (length - header) // size)
        with VoteStore(path, SETTINGS, 3) as store:
            same(store.rows, kept)
            for idx in range(kept, 5):
                store.append(row(idx))
        assert path.read_bytes() == whole
        path.unlink()


def test_a_last_record_of_noise_is_cut_off_and_an_earlier_one_is_an_error(tmp_path):
    path = filled(tmp_path / "a.votes")
    data, size = path.read_bytes(), stores._record_type(3).itemsize
    path.write_bytes(data[:-size] + bytes(size - 1) + b"\1")
    same(read_votes(path)[1], 4)
    damaged = data[: -2 * size + 3] + b"\xff" + data[-2 * size + 4 :]
    path.write_bytes(damaged)
    for run in (lambda: read_votes(path), lambda: VoteStore(path, SETTINGS, 3)):
        with pytest.raises(ValueError, match="is damaged in record 3 of 5"):
            run()
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("settings", "classes"), [({**SETTINGS, "sigma": 0.25}, 3), (SETTINGS, 4), ({"sigma": 0.5}, 3)]
)
def test_other_settings_are_refused_and_the_file_is_left_alone(tmp_path, settings, classes):
    path = filled(tmp_path / "a.votes")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="was made under other settings"):
        VoteStore(path, settings, classes)
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"idx\tlabel\n", b"\0" * 100, b"jaxsmooth votes 1\n{]\n", b"jaxsmooth votes 1\n{}\n"])
def test_other_files_are_refused_and_left_alone(tmp_path, data):
    path = tmp_path / "a.votes"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.votes"):
        VoteStore(path, SETTINGS, 3)
    assert path.read_bytes() == data


@pytest.mark.parametrize("fails", ["write", "fsync", "short write"])
def test_a_full_disk_is_an_error_and_leaves_the_records_before(tmp_path, monkeypatch, fails):
    path = filled(tmp_path / "a.votes", 2)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with VoteStore(path, SETTINGS, 3) as store:
        file = store._file
        if fails == "fsync":
            monkeypatch.setattr(stores.os, "fsync", full)
        else:

            class Disk:
                def __getattr__(self, name):
                    return getattr(file, name)

                def write(self, data):
                    return file.write(data[:10]) if fails == "short write" else full()

            store._file = Disk()
        with pytest.raises(OSError, match=r"No space left|took only part"):
            store.append(row(2))
        assert path.read_bytes() == before
        monkeypatch.undo()
        store._file = file
        store.append(row(2))
    same(read_votes(path)[1], 3)
