"""Fast batched text generation in JAX with EMS-SD speculative decoding."""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from emsjax.errors import UserError
from emsjax.version import __version__

if TYPE_CHECKING:
    from emsjax.engine.trace import Trace, TraceStep
    from emsjax.llm import LLM
    from emsjax.requests.outputs import CompletionOutput, Logprob, Piece, RequestOutput
    from emsjax.requests.sampling_params import SamplingParams
    from emsjax.token_view.report import Report

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "Piece",
    "Report",
    "RequestOutput",
    "SamplingParams",
    "Trace",
    "TraceStep",
    "UserError",
    "__version__",
]

# In a checkout, `models/` and `pallas_kernels/` are not inside `emsjax/`. Python started in the
# checkout's root finds `./emsjax` first, and this adds the installed copy, which has them.
__path__ = extend_path(__path__, __name__)

# Imported on first use, because jax takes seconds to import, which `--help` should not cost.
_LAZY = {
    "LLM": "emsjax.llm",
    "CompletionOutput": "emsjax.requests.outputs",
    "Logprob": "emsjax.requests.outputs",
    "Piece": "emsjax.requests.outputs",
    "Report": "emsjax.token_view.report",
    "RequestOutput": "emsjax.requests.outputs",
    "SamplingParams": "emsjax.requests.sampling_params",
    "Trace": "emsjax.engine.trace",
    "TraceStep": "emsjax.engine.trace",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
