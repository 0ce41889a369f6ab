"""Files that are replaced whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from emsjax.host.files import replace_text, replacing


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path, sync: bool):
    file = tmp_path / "a.txt"
    file.write_bytes(b"old")
    file.chmod(0o640)
    with replacing(file, sync=sync) as stream:
        stream.write(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_or_interrupt_leaves_the_file_as_it_was(
    tmp_path: Path, error: type[BaseException]
):
    file = tmp_path / "a.txt"
    file.write_bytes(b"old")
    with pytest.raises(error), replacing(file) as stream:  # noqa: PT012
        stream.write(b"new")
        raise error
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_files_that_differ_in_their_suffix_do_not_disturb_each_other(tmp_path: Path):
    one, other = tmp_path / "a.json", tmp_path / "a.md"
    with replacing(one) as stream:
        replace_text(other, "é\n")
        stream.write(b"{}")
    assert one.read_bytes() == b"{}"
    assert other.read_bytes() == "é\n".encode()


def test_a_file_in_a_missing_directory_cannot_be_written(tmp_path: Path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "a.txt"):
        pytest.fail("the block must not run")
