"""MATLAB's files: the numbers that SciPy finds, and an error where it ends the process."""

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from dataset.matlab import read_variable


@pytest.mark.parametrize("compressed", (False, True))
def test_numbers_are_those_that_scipy_reads(compressed, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.mat"
    variables = {
        "doubles": rng.random((35, 3)),
        "prior_array": rng.random((3, 4, 5)).astype(np.float32),
        "trainIds": np.arange(5, dtype=np.uint16)[:, None],
        "x": np.array([[7]], np.int8),
        "words": np.array(["a", "b"], dtype=object),
        "last": np.array([[2**40]], np.int64),
    }
    savemat(path, variables, do_compression=compressed)
    expected = loadmat(path)
    for name in ("doubles", "prior_array", "trainIds", "x", "last"):
        np.testing.assert_array_equal(read_variable(path, name), expected[name])
        assert read_variable(path, name).dtype.itemsize <= expected[name].dtype.itemsize
    with pytest.raises(KeyError):
        read_variable(path, "absent")
    with pytest.raises(ValueError, match="no real numbers"):
        read_variable(path, "words")


def test_big_endian(tmp_path):
    """As MATLAB wrote on other processors: one variable `x` of shape (1, 2), doubles 1 and 2."""
    parts = (b"\0\0\0\6\0\0\0\x08\0\0\0\6\0\0\0\0", b"\0\0\0\5\0\0\0\x08\0\0\0\1\0\0\0\2", b"\0\1\0\1x\0\0\0")
    values = b"\0\0\0\x09\0\0\0\x10" + np.array([1.0, 2.0], ">f8").tobytes()
    element = b"".join((*parts, values))
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\1\0MI" + b"\0\0\0\x0e" + len(element).to_bytes(4, "big") + element)
    np.testing.assert_array_equal(read_variable(path, "x"), loadmat(path)["x"])


def test_a_type_that_does_not_exist(tmp_path):
    """SciPy looks it up beyond the end of its table."""
    path = tmp_path / "a.mat"
    savemat(path, {"x": np.ones((35, 3))})
    content = bytearray(path.read_bytes())
    place = content.index(b"\x09\0\0\0\x48\3")
    content[place : place + 4] = b"\xff\x7f\0\0"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no real numbers"):
        read_variable(path, "x")
