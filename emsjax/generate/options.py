"""The options of the command line, and the checks that they fit together."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from emsjax.errors import UserError, reason
from emsjax.limits import (
    DRAFTERS,
    KV_DTYPES,
    MAX_BATCH_SIZE,
    MAX_SEED,
    METHODS,
    QUANTIZATIONS,
)
from emsjax.requests.prompt_line import check_text
from emsjax.requests.sampling_params import SamplingParams
from emsjax.token_view.file import check_page

_DTYPES = ("auto", "float32", "bfloat16", "float16")


# Sampling parameters that contradict the defaults of others, with values that they go with.
_COMPANIONS: dict[str, dict[str, Any]] = {
    "n": {"temperature": 1.0},
    "adapt_temperature": {"temperature": 1.0},
    "min_tokens": {"max_tokens": 2**31 - 1},
}


@dataclass(frozen=True)
class Options:
    """The options of `python -m emsjax.generate`, one field per option.

    None means that the option was not given. The engine's own default then applies, and the
    checks for contradictions only consider options that the user gave.
    """

    model: str | None = None
    tokenizer: str | None = None
    drafter: str | None = None
    draft_model: str | None = None
    draft_quantize: str | None = None
    method: str = "ems"
    prompt: tuple[str, ...] = ()
    input: str | None = None
    output: str | None = None
    chat: bool = False
    system: str | None = None
    max_tokens: int = 128
    batch_size: int | None = None
    max_model_len: int | None = None
    draft_length: int | None = None
    max_ngram: int | None = None
    min_ngram: int | None = None
    min_tokens: int | None = None
    temperature: float = 0.0
    adapt_temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    json_schema: str | None = None
    seed: int = 0
    dtype: str = "auto"
    quantize: str | None = None
    kv_dtype: str | None = None
    planner: bool = True
    exact: bool = False
    ignore_eos: bool = False
    resume: bool = False
    overwrite: bool = False
    stream: bool = False
    report: str | None = None

    @property
    def drafts(self) -> bool:
        """Whether drafting is enabled."""
        return self.method != "none" and self.drafter != "none"

    def sampling(self) -> dict[str, Any]:
        """Returns the sampling parameters by name, as defaults for every prompt."""
        # The seed is left out: each prompt derives its own from the run's seed and its id.
        names = {field.name for field in fields(SamplingParams)} - {"seed"}
        given = {name: value for name, value in vars(self).items() if name in names}
        if self.json_schema is not None:
            given["structured_outputs"] = {"json": _read_schema(self.json_schema)}
        return given

    def engine(self) -> dict[str, Any]:
        """Returns the arguments for `emsjax.llm.LLM`, leaving out options that were not given."""
        arguments = {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "drafter": self.drafter if self.method != "none" else "none",
            "method": self.method,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "kv_dtype": self.kv_dtype,
            "max_batch_size": self.batch_size,
            "max_model_len": self.max_model_len,
            "draft_model": self.draft_model,
            "draft_quantize": self.draft_quantize,
            "draft_length": self.draft_length,
            "max_ngram": self.max_ngram,
            "min_ngram": self.min_ngram,
            "planner": None if self.planner else False,
            "exact": self.exact,
            "seed": self.seed,
            "trace": None if self.report is None else True,
        }
        return {name: value for name, value in arguments.items() if value is not None}


def _read_schema(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else reason(error)
        raise UserError(
            f"--json-schema {file} cannot be read ({why}); name a file with a schema."
        ) from error


def check(options: Options) -> None:
    """Checks the options against each other before anything is loaded.

    Raises:
      UserError: an option has an impossible value, or two options contradict each other.
    """
    _check_choice("--method", options.method, METHODS)
    _check_choice("--drafter", options.drafter or "none", DRAFTERS)
    _check_choice("--dtype", options.dtype, _DTYPES)
    if options.quantize is not None:
        _check_choice("--quantize", options.quantize, QUANTIZATIONS)
    if options.draft_quantize is not None:
        _check_choice("--draft-quantize", options.draft_quantize, QUANTIZATIONS)
    if options.kv_dtype is not None:
        _check_choice("--kv-dtype", options.kv_dtype, KV_DTYPES)
    _check_given(options)
    _check_positive(options)
    _check_drafting(options)
    _check_files(options)
    _check_seed(options.seed)
    _check_sampling(options)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{option} {value} is unknown; choose from {', '.join(choices)}.")


def _check_given(options: Options) -> None:
    """Checks that no name is empty, as a shell variable that is not set would make it."""
    for name in ("model", "tokenizer", "draft_model", "input", "output", "report", "json_schema"):
        if getattr(options, name) == "":
            raise UserError(f"{_flag(name)} is empty; give it a value or leave it out.")


def _check_positive(options: Options) -> None:
    for name in ("batch_size", "max_model_len", "draft_length", "max_ngram", "min_ngram"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{_flag(name)} {value} is too small; give 1 or more.")
    if options.batch_size is not None and options.batch_size > MAX_BATCH_SIZE:
        raise UserError(
            f"--batch-size {options.batch_size} is too large; give {MAX_BATCH_SIZE} or less."
        )


def _check_sampling(options: Options) -> None:
    """Checks the sampling parameters as far as they are known before the input is read."""
    given = options.sampling()
    if options.prompt:
        SamplingParams(**given)
        return
    # A line of the input may override any parameter, so each is checked alone here, with others
    # that it goes with; `jsonl.read` checks the combination.
    for name, value in given.items():
        SamplingParams(**_COMPANIONS.get(name, {}) | {name: value})


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"--seed {seed} is too small; give 0 or more.")
    if seed > MAX_SEED:
        raise UserError(f"--seed {seed} is too large; give {MAX_SEED} or less.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_drafting(options: Options) -> None:
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


def _check_files(options: Options) -> None:
    to_file = options.output not in (None, "-")
    if options.stream and (options.output is not None or options.input is not None):
        raise UserError(
            "--stream prints texts, but JSON lines hold whole results; leave out --stream, or "
            "--input and --output."
        )
    if options.prompt and options.input is not None:
        raise UserError("--prompt and --input contradict each other; give one of them.")
    if options.system is not None and not options.chat:
        raise UserError("--system is a message of a conversation; give --chat, too.")
    if options.system is not None:
        check_text("--system", options.system)
    if options.resume and not to_file:
        raise UserError("--resume needs a file to continue; give --output FILE.")
    if options.overwrite and not to_file:
        raise UserError("--overwrite needs a file to replace; give --output FILE.")
    if options.resume and options.overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them.")
    if to_file and options.input is not None and _same_file(options.input, str(options.output)):
        raise UserError(
            f"--input and --output are the same file, {options.input!r}; give another --output."
        )
    _check_report(options)


def _check_report(options: Options) -> None:
    if options.report is None:
        return
    if options.report == "-":
        raise UserError("--report - is not supported; name a file, such as report.html.")
    check_page(Path(options.report))
    for flag, file in (("--input", options.input), ("--output", options.output)):
        if file is not None and _same_file(file, options.report):
            raise UserError(
                f"{flag} and --report are the same file, {file!r}; give another --report."
            )
    if Path(options.report).suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"--report writes an HTML page, but {options.report!r} does not end in .html; name a "
            "page, such as report.html."
        )


def _same_file(left: str, right: str) -> bool:
    try:
        return os.path.samefile(left, right)
    except OSError:  # one of them does not exist
        return os.path.realpath(left) == os.path.realpath(right)
