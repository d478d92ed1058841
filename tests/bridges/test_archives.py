"""Files of weights from somebody else: what is not as the frameworks write it is refused before it is unpacked."""

import io
import zipfile

import h5py
import numpy as np
import pytest

from bridges.archives import read_arrays
from tests.bridges.frameworks import PyTorch, TensorFlow
from tests.memory import needs_proc, peak, reset_peak

SHAPES = {"bias": (3,), "weights": (2, 3)}
MEBIBYTES = 2**20


def arrays(**changes):
    return {"bias": np.zeros(3), "weights": np.ones((2, 3), np.float32), **changes}


def with_header(text, body=b""):
    """Return the bytes of an .npz file whose `bias` has this header."""
    header = text.encode().ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + np.uint16(len(header)).tobytes() + header + body
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("bias.npy", npy)
        member = io.BytesIO()
        np.save(member, np.ones((2, 3)))
        archive.writestr("weights.npy", member.getvalue())
    return file.getvalue()


def test_arrays_are_read(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays())
        found = read_arrays(tmp_path / "a.npz", SHAPES)
        assert list(found) == list(SHAPES)
        for name, array in arrays().items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "changes",
    [{"bias": np.zeros(4)}, {"bias": np.zeros((3, 1))}, {"other": np.zeros(3)}, {"bias": np.zeros(3, "V100")}],
    ids=["longer", "wider", "more", "wide elements"],
)
def test_other_arrays_are_refused(tmp_path, changes):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=r"a\.npz must hold arrays of"):
        read_arrays(tmp_path / "a.npz", SHAPES)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a zip",
        with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", b"short"),
        with_header("{'descr': '|V1000000000', 'fortran_order': False, 'shape': (3,), }", bytes(24)),
        with_header("{'descr': '<f8'", bytes(24)),
        with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", bytes(24))[:-30],
    ],
    ids=["empty", "no zip", "huge", "short", "wide", "no header", "cut off"],
)
def test_broken_files_are_refused(tmp_path, data):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz must"):
        read_arrays(tmp_path / "a.npz", SHAPES)


@needs_proc
def test_a_file_that_unpacks_to_much_more_is_refused_before(tmp_path):
    """The twin, `numpy.load`, takes as much memory as the file says."""
    np.savez_compressed(tmp_path / "a.npz", **arrays(bias=np.zeros(400 * MEBIBYTES // 8)))
    assert (tmp_path / "a.npz").stat().st_size < MEBIBYTES
    before = reset_peak()
    with pytest.raises(ValueError, match="must hold arrays of shapes"):
        read_arrays(tmp_path / "a.npz", SHAPES)
    assert peak() - before < 40
    np.load(tmp_path / "a.npz")["bias"].sum()
    assert peak() - before > 350


def test_packed_weights_of_pytorch_are_refused(tmp_path):
    classifier = PyTorch.smoothed()
    classifier.save("net", tmp_path)
    whole = tmp_path / "net.model"
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data + bytes(10 * MEBIBYTES))
    with pytest.raises(ValueError, match=r"net\.model must hold its arrays without compression"):
        classifier.load("net", tmp_path)


@pytest.mark.parametrize("packed", [{"compression": "gzip", "data": np.zeros(10**6)}, {"shape": (10**12,)}])
def test_packed_weights_of_keras_are_refused(tmp_path, packed):
    classifier = TensorFlow.smoothed()
    classifier.save("net", tmp_path)
    with h5py.File(tmp_path / "net.weights.h5", "a") as file:
        file.create_dataset("more", chunks=True, **packed)
    with pytest.raises(ValueError, match=r"net\.weights\.h5 must hold its arrays without compression"):
        classifier.load("net", tmp_path)
