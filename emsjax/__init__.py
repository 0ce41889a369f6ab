"""Fast batched text generation in JAX with EMS-SD speculative decoding."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emsjax.errors import UserError
from emsjax.version import __version__

if TYPE_CHECKING:
    from emsjax.cluster.join import join_hosts
    from emsjax.engine.trace import Trace, TraceStep
    from emsjax.llm import LLM
    from emsjax.requests.outputs import CompletionOutput, Logprob, Piece, RequestOutput
    from emsjax.requests.sampling_params import SamplingParams
    from emsjax.requests.structured import StructuredOutputsParams
    from emsjax.token_view.report import Report

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "Piece",
    "Report",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "Trace",
    "TraceStep",
    "UserError",
    "__version__",
    "join_hosts",
]

# `models/` and `pallas_kernels/` lie next to `emsjax/` in a checkout, and inside it once built.
_HERE = Path(__file__).parent
if not (_HERE / "models").is_dir():
    __path__.append(str(_HERE.parent))

# Imported on first use: jax takes seconds to import, and `--help` should not wait for it.
_LAZY = {
    "LLM": "emsjax.llm",
    "join_hosts": "emsjax.cluster.join",
    "CompletionOutput": "emsjax.requests.outputs",
    "Logprob": "emsjax.requests.outputs",
    "Piece": "emsjax.requests.outputs",
    "Report": "emsjax.token_view.report",
    "RequestOutput": "emsjax.requests.outputs",
    "SamplingParams": "emsjax.requests.sampling_params",
    "StructuredOutputsParams": "emsjax.requests.structured",
    "Trace": "emsjax.engine.trace",
    "TraceStep": "emsjax.engine.trace",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
