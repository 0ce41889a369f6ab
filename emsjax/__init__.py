"""Fast batched text generation in JAX with EMS-SD speculative decoding."""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from emsjax.errors import UserError
from emsjax.version import __version__

if TYPE_CHECKING:
    from emsjax.llm import LLM
    from emsjax.outputs import CompletionOutput, Logprob, Piece, RequestOutput
    from emsjax.sampling_params import SamplingParams
    from emsjax.token_view.report import Report
    from emsjax.trace import Trace, TraceStep

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

# In a checkout `emsjax/` has no `models/` or `pallas_kernels/` in it. An installed copy has, and
# is found through this also from the checkout's root, where `./emsjax` comes first.
__path__ = extend_path(__path__, __name__)

# Loaded on first use: jax takes seconds to import, which `--help` should not.
_LAZY = {
    "LLM": "emsjax.llm",
    "CompletionOutput": "emsjax.outputs",
    "Logprob": "emsjax.outputs",
    "Piece": "emsjax.outputs",
    "Report": "emsjax.token_view.report",
    "RequestOutput": "emsjax.outputs",
    "SamplingParams": "emsjax.sampling_params",
    "Trace": "emsjax.trace",
    "TraceStep": "emsjax.trace",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
