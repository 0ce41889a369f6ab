"""vLLM's `speculative_config`, turned into options of drafting."""

from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError, short
from emsjax.limits import MTP
from emsjax.requests.vllm_names import foreign_names, refuse, unknown_name

SPECULATIVE_CONFIG = (
    foreign_names(
        "there is no counterpart: devices share a draft model as they share the model, if they can",
        draft_tensor_parallel_size=(None, 1),
    ),
    foreign_names(
        "download the revision, and name its directory as model",
        revision=None,
        code_revision=None,
    ),
    foreign_names(
        "set draft_quantize of LLM to quantise on load; how a quantised draft is to be read is "
        "known from its configuration",
        quantization=None,
    ),
    foreign_names("there is no counterpart: a draft reads as far as the model", max_model_len=None),
    foreign_names(
        "set planner of LLM, which verifies only the drafts that pay off",
        disable_by_batch_size=None,
        num_speculative_tokens_per_batch_size=None,
        enable_adaptive_verification=False,
    ),
    foreign_names(
        "there is no counterpart: a draft token is accepted if the model chooses it too",
        rejection_sample_method="standard",
        draft_sample_method="greedy",
        acceptance_method=(),
    ),
    foreign_names(
        "there is no counterpart",
        parallel_drafting=False,
        disable_padded_drafter_batch=(True, False),
        use_heterogeneous_vocab=False,
        enforce_eager=(None, False),
        disable_logprobs=(None, False),
    ),
)

# Methods whose draft is in the model's own checkpoint, unless they name another model.
_MTP = ("mtp", "mimo_mtp")
# The methods of `speculative_config` that emsjax has under another name.
_DRAFTERS = {
    **dict.fromkeys(("ngram", "ngram_gpu"), "prompt-lookup"),
    **dict.fromkeys(("draft_model", "eagle", "eagle3", "dflash", "medusa"), "draft-model"),
    **dict.fromkeys(_MTP, "draft-model"),
}
_RENAMED = {
    "model": "draft_model",
    "num_speculative_tokens": "draft_length",
    "prompt_lookup_max": "max_ngram",
    "prompt_lookup_min": "min_ngram",
}


def drafting_options(given: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Adds what a `speculative_config` says to the options of drafting.

    Args:
      given: the options of `LLM` by name; None for those that were left out.
      config: vLLM's `speculative_config`; None adds nothing.

    Raises:
      UserError: the configuration is not one that emsjax can follow, or it comes together with
        options that say the same.
    """
    if config is None:
        return dict(given)
    same = {"drafter", *_RENAMED.values()}
    both = [name for name, value in given.items() if value is not None and name in same]
    if both:
        raise UserError(
            f"speculative_config is vLLM's form of {', '.join(both)}; give either, not both"
        )
    if not isinstance(config, Mapping):
        raise UserError(
            f"speculative_config={short(config)} must be a dictionary such as "
            "{'method': 'ngram', 'num_speculative_tokens': 7}"
        )
    known = ("method", *_RENAMED)
    wanted = {}
    for name, value in config.items():
        if name in known:
            wanted[name] = value
        elif not refuse(name, value, SPECULATIVE_CONFIG):
            raise UserError(unknown_name(str(name), "a key of speculative_config", known))
    method = wanted.pop("method", None)
    if method in _MTP and wanted.get("model") is None:
        wanted["model"] = MTP
    drafter = _drafter(method, wanted.get("model"))
    if drafter == "prompt-lookup":  # vLLM's old configurations name the model "[ngram]"
        wanted.pop("model", None)
    options = {_RENAMED[name]: value for name, value in wanted.items()}
    # Without a longest n-gram, vLLM looks for n-grams of the one given length.
    if options.get("max_ngram") is None and options.get("min_ngram") is not None:
        options["max_ngram"] = options["min_ngram"]
    return {**given, "drafter": drafter, **options}


def _drafter(method: Any, model: Any) -> str:
    """Returns the drafter that a method stands for."""
    if method is None:
        if model is None:
            raise UserError(
                "speculative_config names neither a method nor a model; give 'method': 'ngram', "
                "or 'method': 'draft_model' and 'model'"
            )
        method = "ngram" if model in ("ngram", "[ngram]") else "draft_model"
    if not isinstance(method, str) or method not in _DRAFTERS:
        raise UserError(
            f"the speculative method {short(method)} is not emsjax's; "
            + (
                "use 'ngram', which also finds repetitions in the text"
                if method == "suffix"
                else "use 'ngram', or train a draft with `python -m emsjax.train` and name it as "
                "'model' with the method 'draft_model'"
            )
        )
    if _DRAFTERS[method] == "draft-model" and model is None:
        raise UserError(f"the speculative method {method!r} needs a draft; name it as 'model'")
    if _DRAFTERS[method] == "prompt-lookup" and model not in (None, "ngram", "[ngram]"):
        raise UserError(
            f"the speculative method {short(method)} has no model {short(model)}; leave one out"
        )
    return _DRAFTERS[method]
