"""What is compiled for long is noticed, and what is in the cache is not."""

import time

import jax.monitoring
import pytest

from emsjax.host import compiling
from emsjax.host.compiling import _BEGUN, when_compiling


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("/jax/compilation_cache/cache_hits", []),
        (None, ["decode", "another"]),
        ("another", ["decode", "another"]),
    ],
)
def test_only_a_long_compilation_is_told_and_each_program_once(
    found: str | None, said: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiling, "_LONG_S", 0.05)
    calls: list[str] = []
    with when_compiling(calls.append):
        for name in ("jit(decode)", "decode", "jit(another)"):
            jax.monitoring.record_scalar(_BEGUN, 0.0, fun_name=name)
            jax.monitoring.record_event("/jax/compilation_cache/compile_requests_use_cache")
            if found is not None:
                jax.monitoring.record_event(found)
            time.sleep(0.2)
    assert calls == said


def test_nothing_is_told_after_the_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "_LONG_S", 0.05)
    calls: list[str] = []
    with when_compiling(calls.append):
        jax.monitoring.record_event("/jax/compilation_cache/compile_requests_use_cache")
    time.sleep(0.2)
    assert calls == []
