"""Shows that the tests of token trees can fail: each puts one fault in and must catch it."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import pytest

from emsjax.engine import loop
from emsjax.pallas_kernels.ragged_attention import api, reference
from tests.engine.test_trees import check

pytestmark = pytest.mark.slow
Fault = Callable[[Callable], Callable]


def by_place(**fields: Callable[[Any, Any, Any], Any]) -> Fault:
    """Has `prefixes_of` return what would follow if all rows of a slot were a chain."""

    def fault(prefixes_of: Callable) -> Callable:
        def faulty(batch: Any, state: Any, guesses: Any) -> Any:
            rows = prefixes_of(batch, state, guesses)
            place = jnp.arange(batch.tokens.shape[0], dtype=jnp.int32)
            place -= batch.cu_q_lens[rows.slots]
            now = {name: of(rows, place, (state, guesses)) for name, of in fields.items()}
            return rows._replace(**now)

        return faulty

    return fault


def all_before(rows: Any, place: Any, given: Any) -> Any:
    """Returns all guesses before each row as its path."""
    state, guesses = given
    count = guesses.tokens.shape[1]
    before = jnp.arange(count, dtype=jnp.int32)[None] < place[:, None]
    decoding = (rows.positions >= state.lens[rows.slots] - 1)[:, None]
    return jnp.where(before & decoding, guesses.tokens[rows.slots], rows.path)


FAULTS: dict[str, tuple[Any, str, Fault, tuple[str, str]]] = {
    "a window counts places": (
        *(reference, "lag", lambda lag: lambda bits, place: 0 * lag(bits, place)),
        ("mistral", "greedy"),
    ),
    "penalties count all guesses before a row": (
        *(loop, "prefixes_of", by_place(path=all_before)),
        ("llama3", "sampled"),
    ),
    "noise is that of the row's place": (
        loop,
        "prefixes_of",
        by_place(positions=lambda rows, place, given: given[0].kv_lens[rows.slots] + place),
        ("llama3", "sampled"),
    ),
    "siblings are judged in another order than they ran": (
        loop,
        "verify",
        lambda verify: lambda tokens, *rest: verify(jnp.roll(tokens, 1, axis=1), *rest),
        ("llama3", "greedy"),
    ),
    "the K/V of a path are not moved": (
        *(loop, "keep_path", lambda _: lambda setup, caches, *rest: caches),
        ("llama3", "greedy"),
    ),
}


def only_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the reference attend, since the kernel for CPUs is compiled code."""
    only = MappingProxyType({"reference": api.BACKENDS["reference"]})
    monkeypatch.setattr(api, "BACKENDS", only)


def test_a_window_without_a_fault(monkeypatch: pytest.MonkeyPatch):
    only_reference(monkeypatch)
    check("mistral")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch):
    place, function, fault, (model, choice) = FAULTS[name]
    if place is reference:
        only_reference(monkeypatch)
    monkeypatch.setattr(place, function, fault(getattr(place, function)))
    with pytest.raises(AssertionError, match="job"):
        check(model, choice)
