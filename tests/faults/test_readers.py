"""Damaged files for every reader: a few of those that scripts/soak.py makes."""

import pickle

import pytest

from tests.faults import readers as fuzzing
from tests.faults.readers import Reader, fuzz, readers

INPUTS = 40


@pytest.mark.parametrize("name", readers())
@pytest.mark.filterwarnings("ignore")
def test_a_reader_of_damaged_files_raises_our_errors_alone(name, tmp_path):
    report = fuzz(readers()[name], INPUTS, 0, str(tmp_path))
    assert report.inputs == INPUTS and not report.problems


@pytest.mark.parametrize("name", readers())
@pytest.mark.filterwarnings("ignore")
def test_a_reader_reads_its_whole_files(name, tmp_path):
    """Else damage would never get far. What holds code is refused."""
    reader, path = readers()[name], tmp_path / readers()[name].file_name
    for content in reader.files:
        if b"system" in content or b"exec" in content:
            continue
        path.write_bytes(content)
        try:
            reader.read(str(path))
        except fuzzing.OUR_ERRORS as error:
            assert name.startswith((".", "weights")), error  # some files hold too little to be a network's


def test_misbehaviour_is_found(tmp_path, monkeypatch):
    def takes_much(path):
        return bytearray(200 * 2**20)

    def raises(path):
        raise KeyError("x")

    def raises_without_a_name(path):
        raise fuzzing.DataError("something")

    def loops(path):
        while True:
            pass

    code = fuzzing._payloads()
    for read, files, problem in (
        (takes_much, [b"x"], "times the file and more"),
        (raises, [b"x"], "KeyError"),
        (raises_without_a_name, [b"x"], "names no file"),
        (loops, [b"x"], "took more than"),
        (lambda path: pickle.loads(code[1]), [b"x"], "it did os.system"),
        (lambda path: pickle.loads(code[4]), [b"x"], "it did compile"),
    ):
        monkeypatch.setattr(fuzzing, "SECONDS", 0.2 if read is loops else 20)
        report = fuzz(Reader("a reader", "a.bin", read, files), 2, 0, str(tmp_path))
        assert report.problems and all(problem in each for each in report.problems), report.problems
