"""Other libraries that run on the same prompts, and what they share."""

from collections.abc import Callable
from typing import Protocol

from emsjax.bench.contenders import Spec
from emsjax.bench.whole_job import Server

TRANSFORMERS, VLLM = "transformers", "vllm"
NGRAM = "n-gram"
# The contenders of each library. vLLM drafts 3 tokens: on a CPU every verified token costs time.
PEERS: dict[str, tuple[Spec, ...]] = {
    TRANSFORMERS: (Spec(TRANSFORMERS),),
    VLLM: (Spec(VLLM), Spec(VLLM, f"{NGRAM}@3")),
}


class Peer(Server, Protocol):
    """A library with the target's weights, ready to run.

    `serve` raises a `UserError` if the library fails on the prompts.
    """

    def close(self) -> None:
        """Ends what was started for it."""
        ...


# Starts a peer for B slots and samples of up to S tokens, prompt and text together.
Starter = Callable[[int, int], Peer]
