"""What is compiled for long is noticed, and what is in the cache is not."""

import time

import jax.monitoring
import pytest

from emsjax.host import compiling
from emsjax.host.compiling import when_compiling


@pytest.mark.parametrize(
    ("found", "said"),
    [("/jax/compilation_cache/cache_hits", 0), (None, 1), ("another", 1)],
)
def test_only_a_long_compilation_is_told(
    found: str | None, said: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiling, "_LONG_S", 0.05)
    calls: list[int] = []
    with when_compiling(lambda: calls.append(1)):
        for _ in range(2):
            jax.monitoring.record_event("/jax/compilation_cache/compile_requests_use_cache")
            if found is not None:
                jax.monitoring.record_event(found)
            time.sleep(0.2)
    assert len(calls) == said


def test_nothing_is_told_after_the_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "_LONG_S", 0.05)
    calls: list[int] = []
    with when_compiling(lambda: calls.append(1)):
        jax.monitoring.record_event("/jax/compilation_cache/compile_requests_use_cache")
    time.sleep(0.2)
    assert calls == []
