"""The garbage collector pauses while a program starts, and never for good."""

import gc

import pytest

from emsjax.host.garbage import garbage_waits


def test_no_garbage_is_collected_in_the_block():
    assert gc.isenabled()
    with garbage_waits():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_in_the_block_turns_it_on_again():
    with pytest.raises(KeyError), garbage_waits():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with garbage_waits():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
