"""The options of every command that runs a model: which model, on how many slots, with what drafts.

A command takes them as parameters of the types below, and its own options extend `ModelOptions`.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from emsjax.cli.declare import number, option
from emsjax.cli.devices_option import devices_option
from emsjax.errors import UserError
from emsjax.limits import (
    DRAFTERS,
    KV_DTYPES,
    MAX_BATCH_SIZE,
    MAX_SEED,
    METHODS,
    QUANTIZATIONS,
)

_DTYPES = ("auto", "float32", "bfloat16", "float16")
# The options that `LLM` takes under another name.
_ARGUMENTS = {"batch_size": "max_batch_size", "tensor_parallel": "tensor_parallel_size"}
_MODEL, _DRAFTING = "Model", "Drafting"

Model = Annotated[
    str | None, option("--model", "Directory or hub id. (default: SmolLM2-135M-Instruct)", _MODEL)
]
Tokenizer = Annotated[
    str | None, option("--tokenizer", "Directory or hub id. (default: the model's)", _MODEL)
]
Dtype = Annotated[str, option("--dtype", "auto, float32, bfloat16 or float16.", _MODEL, "TYPE")]
Quantize = Annotated[
    str | None,
    option(
        "--quantize",
        "int8: half the memory; int4: keep 4 bits; none: floats.",
        _MODEL,
        "KIND",
    ),
]
KvDtype = Annotated[
    str | None,
    option("--kv-dtype", "int8: half the cache's memory. (default: none)", _MODEL, "int8"),
]
TensorParallel = Annotated[Any, devices_option(_MODEL)]
BatchSize = Annotated[
    int | None, number("--batch-size", "Samples decoded together. (default: 8)", _MODEL)
]
PrefixSlots = Annotated[
    int, number("--prefix-slots", "Extra slots that keep texts for reuse.", _MODEL)
]
MaxModelLen = Annotated[
    int | None, number("--max-model-len", "Limit on prompt plus output, in tokens.", _MODEL)
]
Exact = Annotated[bool, option("--exact", "Match plain decoding bit for bit; slower.", _MODEL)]
Method = Annotated[
    str,
    option(
        "--method",
        "ems, none (plain decoding), or with padding: vanilla, unpad-kv, unpad-input.",
        _DRAFTING,
        "METHOD",
    ),
]
Drafter = Annotated[
    str | None,
    option("--drafter", f"{', '.join(DRAFTERS)}. (default: the best available)", _DRAFTING),
]
DraftModel = Annotated[
    str | None,
    option(
        "--draft-model",
        "Smaller model, published head, trained draft, mtp, own-layers, or self-window.",
        _DRAFTING,
    ),
]
DraftQuantize = Annotated[
    str | None, option("--draft-quantize", "Like --quantize, for a draft model.", _DRAFTING, "int8")
]
DraftLength = Annotated[
    int | None,
    number(
        "--draft-length",
        "Maximum draft tokens per step. (default: 7; 15 on a GPU or TPU with up to 32 slots)",
        _DRAFTING,
    ),
]
MaxNgram = Annotated[
    int | None, number("--max-ngram", "Longest n-gram to look up. (default: 16)", _DRAFTING)
]
MinNgram = Annotated[
    int | None, number("--min-ngram", "Shortest n-gram to look up. (default: 1)", _DRAFTING)
]
Planner = Annotated[
    bool, option("--planner/--no-planner", "Verify only drafts that pay off.", _DRAFTING)
]


@dataclass(frozen=True)
class ModelOptions:
    """The options that become arguments of `emsjax.llm.LLM`, one field per option.

    None means that the option was not given. The engine's own default then applies, and the
    checks for contradictions only consider options that the user gave.
    """

    model: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    quantize: str | None = None
    kv_dtype: str | None = None
    tensor_parallel: int | str | None = None
    batch_size: int | None = None
    prefix_slots: int = 0
    max_model_len: int | None = None
    exact: bool = False
    method: str = "ems"
    drafter: str | None = None
    draft_model: str | None = None
    draft_quantize: str | None = None
    draft_length: int | None = None
    max_ngram: int | None = None
    min_ngram: int | None = None
    planner: bool = True
    seed: int = 0

    @property
    def drafts(self) -> bool:
        """Whether drafting is enabled."""
        return self.method != "none" and self.drafter != "none"

    def engine(self) -> dict[str, Any]:
        """Returns the arguments for `emsjax.llm.LLM`, leaving out what is as by default."""
        options = [f for f in fields(ModelOptions) if getattr(self, f.name) != f.default]
        given = {_ARGUMENTS.get(f.name, f.name): getattr(self, f.name) for f in options}
        return given | ({"drafter": "none"} if self.method == "none" else {})


def check_model_options(options: ModelOptions) -> None:
    """Checks the options against each other before anything is loaded.

    Raises:
      UserError: an option has an impossible value, or two options contradict each other.
    """
    _check_choice("--method", options.method, METHODS)
    _check_choice("--drafter", options.drafter or "none", DRAFTERS)
    _check_choice("--dtype", options.dtype, _DTYPES)
    for name in ("quantize", "draft_quantize"):
        if (method := getattr(options, name)) is not None:
            option = f"--{name.replace('_', '-')}"
            _check_choice(option, method, QUANTIZATIONS)
    if options.kv_dtype is not None:
        _check_choice("--kv-dtype", options.kv_dtype, KV_DTYPES)
    for name in ("model", "tokenizer", "draft_model"):
        check_not_empty(name, getattr(options, name))
    _check_positive(options)
    _check_drafting(options)
    _check_seed(options.seed)


def check_not_empty(name: str, value: str | None) -> None:
    """Checks that an option is not empty, as a shell variable that is not set would make it.

    Args:
      name: the option's field, such as `draft_model`.
      value: what was given.

    Raises:
      UserError: it is empty.
    """
    if value == "":
        raise UserError(f"{_flag(name)} is empty; give it a value or leave it out.")


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{flag} {value} is unknown; choose from {', '.join(choices)}.")


def _check_positive(options: ModelOptions) -> None:
    for name in ("batch_size", "max_model_len", "draft_length", "max_ngram", "min_ngram"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{_flag(name)} {value} is too small; give 1 or more.")
    for name in ("batch_size", "prefix_slots"):
        value = getattr(options, name)
        if value is not None and value > MAX_BATCH_SIZE:
            raise UserError(f"{_flag(name)} {value} is too large; give {MAX_BATCH_SIZE} or less.")
    if options.prefix_slots < 0:
        raise UserError(f"--prefix-slots {options.prefix_slots} is too small; give 0 or more.")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"--seed {seed} is too small; give 0 or more.")
    if seed > MAX_SEED:
        raise UserError(f"--seed {seed} is too large; give {MAX_SEED} or less.")


def _check_drafting(options: ModelOptions) -> None:
    for name in ("draft_model", "draft_quantize"):
        if getattr(options, name) is not None and options.drafter == "prompt-lookup":
            raise UserError(
                f"--drafter prompt-lookup does not use {_flag(name)} {getattr(options, name)}; "
                "leave one of them out."
            )
    if options.method == "none" and options.drafter not in (None, "none"):
        raise UserError(
            f"--method none drafts nothing, so --drafter {options.drafter} contradicts it; "
            "leave one of them out."
        )
    for name in ("draft_model", "draft_quantize", "draft_length", "max_ngram", "min_ngram"):
        if getattr(options, name) is not None and not options.drafts:
            flag = _flag(name)
            raise UserError(
                f"{flag} has no effect without drafting; leave out {flag}, or --method none and "
                "--drafter none."
            )
    for name in ("max_ngram", "min_ngram"):
        if getattr(options, name) is not None and options.drafter == "draft-model":
            raise UserError(
                f"{_flag(name)} is for prompt lookup, which --drafter draft-model does not use; "
                f"leave out {_flag(name)}, or use --drafter combined."
            )
    low, high = options.min_ngram, options.max_ngram
    if low is not None and high is not None and low > high:
        raise UserError(
            f"--min-ngram {low} is more than --max-ngram {high}; make it {high} or less."
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
