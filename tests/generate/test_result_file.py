import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax.errors import UserError
from emsjax.generate.result_file import open_output
from emsjax.requests import jsonl


def _result(line_id, text="a"):
    return jsonl.encode({"id": line_id, "prompt": "p", "text": text, "prompt_digest": "d"})


def _error(line_id):
    return jsonl.encode({"id": line_id, "line": 1, "error": "line 1: no."})


def _resume(path):
    with open_output(str(path), resume=True) as file:
        return set(file.finished)


def test_each_line_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_output(str(path)) as file:
        file.write(b"one\n")
        assert path.read_bytes() == b"one\n"
        file.write(b"two\n")
        assert path.read_bytes() == b"one\ntwo\n"


def test_results_are_overwritten_only_on_request(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(_result(1))
    with pytest.raises(UserError, match=r"already holds results; give --resume .* --overwrite"):
        open_output(str(path))
    assert path.read_bytes() == _result(1)


def test_overwriting_waits_for_the_first_result(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(_result(1) + _result(2))
    with open_output(str(path), overwrite=True) as file:
        assert path.read_bytes() == _result(1) + _result(2)
        file.write(_result(3))
        assert path.read_bytes() == _result(3)
    assert path.read_bytes() == _result(3)


def test_a_run_that_ends_before_its_first_result_overwrites_nothing(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(_result(1))
    with pytest.raises(KeyboardInterrupt), open_output(str(path), overwrite=True):
        raise KeyboardInterrupt
    assert path.read_bytes() == _result(1)


def test_a_successful_run_without_results_empties_the_file(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(_result(1))
    with open_output(str(path), overwrite=True):
        pass
    assert path.read_bytes() == b""


@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_file_is_treated_as_a_new_one(tmp_path, resume):
    path = tmp_path / "out.jsonl"
    path.touch()
    with open_output(str(path), resume=resume) as file:
        file.write(_result(1))
    assert path.read_bytes() == _result(1)


def test_resuming_a_missing_file_creates_it(tmp_path):
    assert _resume(tmp_path / "out.jsonl") == set()


@pytest.mark.parametrize("cut", range(len(_result("é1") + _error("bad") + _result(2)) + 1))
def test_a_file_cut_anywhere_resumes_with_its_whole_results(tmp_path, cut):
    lines = [_result("é1"), _error("bad"), _result(2)]
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"".join(lines)[:cut])
    with open_output(str(path), resume=True) as file:
        file.write(_result("next"))
        finished = set(file.finished)
    whole = [
        line for line in (lines[0], lines[2]) if b"".join(lines).index(line) + len(line) <= cut
    ]
    assert path.read_bytes() == b"".join(whole) + _result("next")
    assert finished == {jsonl.key(json.loads(line)["id"]) for line in whole}


def test_error_records_are_dropped_at_once_and_the_mode_is_kept(tmp_path):
    target = tmp_path / "target.jsonl"
    target.write_bytes(_error(1) + _result(2) + _error(3))
    target.chmod(0o640)
    link = tmp_path / "out.jsonl"
    link.symlink_to(target)
    assert _resume(link) == {"2"}
    assert link.is_symlink()
    assert target.read_bytes() == _result(2)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "target.jsonl"]


@pytest.mark.parametrize(
    "foreign",
    [
        b"my notes\n",
        b"my notes without an end",
        b'{"id": 1, "prompt": "an input, not a result"}\n',
        b'{"id": [1], "prompt_digest": "d"}\n',
        b'{"id": 1, "error": "a log of something else"}\n',
        b"[1]\n",
        b"\xff\n",
        _result(1) + b"notes\n",
    ],
)
def test_a_file_that_holds_no_results_is_left_alone(tmp_path, foreign):
    path = tmp_path / "out.jsonl"
    path.write_bytes(foreign)
    with pytest.raises(UserError, match=r"line [12] of .* is not a result, and --resume"):
        open_output(str(path), resume=True)
    assert path.read_bytes() == foreign


def test_a_half_written_line_is_cut_off(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_output(str(path)) as file:
        file.write(_result(1))
        file._file.write(_result(2)[:9])
    assert path.read_bytes() == _result(1)


def test_a_full_device_is_reported():
    message = r"cannot write to '/dev/full' .No space left on device"
    with open_output("/dev/full") as file, pytest.raises(UserError, match=message):
        file.write(b"line\n")


def test_a_device_can_be_the_output():
    with open_output("/dev/null") as file:
        file.write(b"line\n")


def test_an_output_that_cannot_be_opened_is_reported(tmp_path):
    missing = tmp_path / "no" / "out.jsonl"
    with pytest.raises(UserError, match=r"cannot write to .*No such file.*give another --output"):
        open_output(str(missing))


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_directory_is_reported(tmp_path, how):
    with pytest.raises(UserError, match=r"is a directory; give --output a file, such as .*jsonl"):
        open_output(str(tmp_path), **how)


def test_a_failed_run_leaves_no_empty_file_behind(tmp_path):
    new, old, used = (tmp_path / name for name in ("new", "old", "used"))
    old.touch()
    for path in (new, old, used):
        with pytest.raises(RuntimeError), open_output(str(path)) as file:  # noqa: PT012
            if path == used:
                file.write(_result(1))
            raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["old", "used"]
    with open_output(str(new)):
        pass
    assert new.exists(), "a run with nothing to do is not a failure"


def test_blank_lines_in_a_result_file_do_no_harm(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(_result(1) + b"\n" + _result(2) + b" \n ")
    assert _resume(path) == {"1", "2"}
    assert path.read_bytes() == _result(1) + b"\n" + _result(2) + b" \n"
    path.write_bytes(_result(1) + b"\n" + _error(2) + b"\n")
    assert _resume(path) == {"1"}
    assert path.read_bytes() == _result(1)


@given(st.lists(st.binary(min_size=1, max_size=5)), st.integers(1, 3))
def test_short_writes_lose_nothing(tmp_path_factory, lines, most):
    path = tmp_path_factory.mktemp("short") / "out"
    with open_output(str(path)) as file:
        raw = file._file

        class Short:
            def write(self, data):
                return raw.write(data[:most])

            def __getattr__(self, name):
                return getattr(raw, name)

        file._file = Short()
        for line in lines:
            file.write(line)
    assert path.read_bytes() == b"".join(lines)
