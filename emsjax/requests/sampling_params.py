"""The parameters that choose a request's tokens and its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from emsjax.errors import UserError, short
from emsjax.requests.param_values import (
    NUMBERS,
    TOKEN_LISTS,
    WHOLE,
    biases_of,
    check_number,
    check_whole_number,
    is_whole,
    strings_of,
    token_ids_of,
    words_of,
)
from emsjax.requests.structured import StructuredOutputsParams, structured
from emsjax.requests.vllm_names import takes_vllm_names
from emsjax.requests.vllm_requests import SAMPLING_PARAMS

# Logits divided by a lower temperature leave the range of float32.
_LOWEST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class SamplingParams:
    """The parameters of one request; names and meanings are those of vLLM.

    Other names of vLLM are accepted with values that change nothing here; with any other value they
    are refused with a message that says what to use instead.

    The logits of the next token pass through these parameters in this order:

    1. `logit_bias`, allowed and banned tokens, `structured_outputs`, `min_tokens`
    2. the repetition, frequency and presence penalties
    3. `no_repeat_ngram_size`, bad words, and tokens forced or suppressed at the ends of the output
    4. if the temperature is above 0: temperature, `top_k`, `top_p`, `min_p`

    Speculation does not change the result: a draft token is accepted only if the target would have
    chosen the same token with these parameters after the same prefix.

    Attributes:
      max_tokens: the most tokens to generate, at least 1; None for the rest of the context.
      min_tokens: the number of tokens before the output may end: an end of text or a stop token
        comes after them, and no stop string is complete before the last of them. None uses
        `min_new_tokens` of the model's generation config, or `min_length` less the prompt, but at
        most `max_tokens`; else 0.
      temperature: 0 is greedy; higher values, from 1e-6 to 100, make the choice more even.
      adapt_temperature: the temperature for the first token of an indented line (after a line break
        and blanks), where code is hardest to predict (AdapT, arXiv 2309.02772, which uses 0.8 there
        and 0.6 elsewhere). Requires a temperature above 0. None uses `temperature` there too.
      top_k: keep the k likeliest tokens (and those as likely as the last of them). 0 or -1 keeps
        all; None uses the model's generation config if it sets `top_k`, else keeps all.
      top_p: keep the likeliest tokens that together have this probability (and those as likely as
        the last of them), above 0 to 1. None uses the model's generation config, else keeps all.
      min_p: keep tokens with at least this share of the likeliest token's probability, 0 to 1.
        None uses the model's generation config, else keeps all.
      seed: 0 to 2**63 - 1. The tokens depend only on the seed, the prompt, these parameters and
        the model. None derives a seed for each request from that of the `LLM`.
      stop: a string or strings that end the output, which is cut before them.
      include_stop_str_in_output: whether the text includes the stop string, or the text of the stop
        token, that ended it.
      stop_token_ids: ids that end the output, in addition to the model's end of text; stored as a
        tuple.
      ignore_eos: whether to continue past an end of text, up to `max_tokens`.
      logprobs: return the natural log-probability of each token and of this many of the likeliest,
        0 to 20, from the model itself, before bias, penalties and temperature; None returns none.
      prompt_logprobs: the same for each token of the prompt except the first, in
        `RequestOutput.prompt_logprobs`; the prompt is then read twice.
      n: the number of outputs for the prompt; more than one requires a temperature above 0.
      presence_penalty: subtracted from the logits of tokens in the output, -2 to 2.
      frequency_penalty: subtracted from a token's logit for each occurrence in the output, -2 to 2.
      repetition_penalty: divides positive logits of tokens in the prompt or output and multiplies
        negative ones, 0.01 to 100. None uses the model's generation config, else 1.
      logit_bias: values to add to logits, by token id, -1000 to 1000.
      allowed_token_ids: the only tokens that may be chosen; None allows all.
      bad_words: words that may not be written, at the start of the text or after a space. The last
        token of a word of several tokens is banned where the others precede it, even in the prompt.
      bad_words_ids: the same as lists of token ids; a list of only an end of text is ignored. At
        most 32 words of more than one token, of at most 8 tokens each. None uses the model's
        generation config, else bans none.
      no_repeat_ngram_size: no sequence of this many tokens occurs twice in prompt and output; 0
        allows repetitions. None uses the model's generation config, else 0.
      skip_special_tokens: whether the text leaves out special tokens, such as the end of text.
      detokenize: whether tokens are decoded; if not, the text is None.
      banned_token_ids: tokens that may not be chosen. None uses those of the model's generation
        config (`suppress_tokens`), else none.
      begin_suppress_tokens: tokens that may not be the first of the output, at most 32. None uses
        the model's generation config, else none.
      forced_bos_token_id: the first token of the output after a prompt of a single token, or a list
        of at most 16 equally likely ones. None uses the model's generation config, else none.
      forced_eos_token_id: the last token of an output that reaches `max_tokens`, or a list of at
        most 16 equally likely ones. None uses the model's generation config, else none.
      structured_outputs: what the output may be: `StructuredOutputsParams`, or a mapping with the
        same names, such as {"json": schema}. An output that reaches `max_tokens` may be incomplete.
        It overrides `min_tokens` where the output must end.

    Raises:
      UserError: a value has the wrong type or is out of range, or two contradict each other.
    """

    max_tokens: int | None = 16
    min_tokens: int | None = None
    temperature: float = 0.0
    adapt_temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    banned_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    no_repeat_ngram_size: int | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    forced_bos_token_id: int | Sequence[int] | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in WHOLE.items():
            _check_optional(name, getattr(self, name), low, high, check_whole_number)
        for name, (low, high) in NUMBERS.items():
            _check_optional(name, getattr(self, name), low, high, check_number)
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={short(getattr(self, name))} must be true or false.")
        # Fields of a frozen dataclass can only be set this way. Tuples, unlike the caller's lists,
        # cannot change during a run.
        object.__setattr__(self, "stop", strings_of("stop", "stop string", self.stop))
        object.__setattr__(self, "bad_words", strings_of("bad_words", "bad word", self.bad_words))
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if is_whole(getattr(self, name)):
                object.__setattr__(self, name, (getattr(self, name),))
        for name in TOKEN_LISTS:
            object.__setattr__(self, name, token_ids_of(name, getattr(self, name)))
        object.__setattr__(self, "bad_words_ids", words_of(self.bad_words_ids))
        object.__setattr__(self, "logit_bias", biases_of(self.logit_bias))
        object.__setattr__(self, "structured_outputs", structured(self.structured_outputs))
        _check_together(self)

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled, so that the result depends on the seed."""
        return self.temperature > 0 or (self.adapt_temperature or 0) > 0

    @property
    def biases(self) -> dict[int, float]:
        """`logit_bias` as a dictionary, empty if there is none."""
        return dict(self.logit_bias or ())  # type: ignore[call-overload]

    @property
    def forced_first(self) -> tuple[int, ...]:
        """The tokens of `forced_bos_token_id`."""
        return tuple(self.forced_bos_token_id or ())  # type: ignore[arg-type]

    @property
    def forced_last(self) -> tuple[int, ...]:
        """The tokens of `forced_eos_token_id`."""
        return tuple(self.forced_eos_token_id or ())  # type: ignore[arg-type]

    @property
    def short_bad_words(self) -> tuple[int, ...]:
        """The words of `bad_words_ids` that are one token."""
        return tuple(word[0] for word in self.bad_words_ids or () if len(word) == 1)

    @property
    def long_bad_words(self) -> tuple[tuple[int, ...], ...]:
        """The words of `bad_words_ids` that are several tokens."""
        return tuple(tuple(word) for word in self.bad_words_ids or () if len(word) > 1)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "SamplingParams":
        """Makes parameters from a mapping by name, such as an object in a line of JSON.

        Raises:
          UserError: a name is unknown or a value is invalid.
        """
        return cls(**mapping)


# The decorator would hide that the class is a dataclass, so only its `__init__` is replaced.
_INIT = takes_vllm_names("a sampling parameter", SAMPLING_PARAMS)(SamplingParams.__init__)
SamplingParams.__init__ = _INIT  # type: ignore[method-assign]

_OPTIONAL = {f.name for f in fields(SamplingParams) if f.default is None} | {"max_tokens"}
_SWITCHES = [f.name for f in fields(SamplingParams) if isinstance(f.default, bool)]


def _check_optional(name: str, value: object, low: Any, high: Any, check: Any) -> None:
    if value is not None or name not in _OPTIONAL:
        check(name, value, low, high)


def _check_together(params: SamplingParams) -> None:
    """Checks the parameters against each other."""
    if params.max_tokens is not None and (params.min_tokens or 0) > params.max_tokens:
        raise UserError(
            f"min_tokens={params.min_tokens} is more than max_tokens={params.max_tokens}; "
            "lower one or raise the other."
        )
    if params.structured_outputs is not None and params.ignore_eos:
        raise UserError("ignore_eos leaves structured_outputs no end; leave one of them out.")
    _check_temperatures(params)
    if not params.detokenize:
        _check_without_text(params)
    allowed = params.allowed_token_ids
    if allowed is not None and not set(allowed) - set(params.banned_token_ids or ()):
        raise UserError(
            "allowed_token_ids and banned_token_ids leave no token to choose; allow more."
        )
    for name, tokens in (
        ("stop_token_ids", params.stop_token_ids or ()),
        ("logit_bias", params.biases),
        ("forced_bos_token_id", params.forced_first),
        ("forced_eos_token_id", params.forced_last),
    ):
        for token in tokens:
            _check_possible(params, name, token)


def _check_without_text(params: SamplingParams) -> None:
    needing = {
        "stop": params.stop,
        "include_stop_str_in_output": params.include_stop_str_in_output,
        "skip_special_tokens=False": not params.skip_special_tokens,
    }
    for name, given in needing.items():
        if given:
            raise UserError(f"{name} needs the text that detokenize=False leaves out; drop one.")


def _check_temperatures(params: SamplingParams) -> None:
    for name in ("temperature", "adapt_temperature"):
        value = getattr(params, name) or 0
        if 0 < value < _LOWEST_TEMPERATURE:
            raise UserError(
                f"{name}={value} is too small to differ from 0; give 0, or at least "
                f"{_LOWEST_TEMPERATURE:g}."
            )
    if params.adapt_temperature and params.temperature == 0:
        raise UserError(
            f"adapt_temperature={params.adapt_temperature} needs a temperature above 0 for the "
            "other tokens; give temperature too, or leave adapt_temperature out."
        )
    same = {
        "at temperature 0; raise temperature": not params.samples,
        "with top_k=1; give a larger top_k": params.top_k == 1,
        "with min_p=1; give a smaller min_p": params.min_p == 1,
    }
    for reason, holds in same.items():
        if params.n > 1 and holds:
            raise UserError(f"n={params.n} outputs would all be the same {reason}, or leave n out.")


def _check_possible(params: SamplingParams, name: str, token: int) -> None:
    """Checks that a token which a parameter names can be chosen at all."""
    allowed = params.allowed_token_ids
    if token in (params.banned_token_ids or ()):
        raise UserError(
            f"{name} has token id {token}, which banned_token_ids has too; remove one of them."
        )
    if allowed is not None and token not in allowed:
        raise UserError(
            f"{name} has token id {token}, which is not in allowed_token_ids; add it there, or "
            f"remove it from {name}."
        )
