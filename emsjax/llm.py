"""`LLM`: the Python interface, named as users of vLLM know it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from emsjax.choices import check_whole, choose_drafter, choose_ladder, params_of_each
from emsjax.compile_cache import use_compile_cache
from emsjax.drafters.base import Drafter
from emsjax.engine import Engine, Finished, Job
from emsjax.errors import UserError
from emsjax.loading.load import load_model
from emsjax.memory import check_cache_fits
from emsjax.outputs import CompletionOutput, RequestOutput
from emsjax.prompts import Message, Prompt, check_prompt, prompt_list
from emsjax.sampling_params import SamplingParams
from emsjax.shapes import round_up
from emsjax.state import MAX_STOP_IDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Whole blocks of the cache for every backend.
CAPACITY_MULTIPLE = 256
DEFAULT_MAX_MODEL_LEN = 4096
# Tokens of the prompt that the first generated ones are decoded behind.
CONTEXT_TOKENS = 8


@dataclass(frozen=True)
class Request:
    """A checked prompt with its parameters, ready to run.

    Attributes:
      request_id: comes back with the result.
      prompt: the text that was tokenised, None where token ids were given.
      prompt_token_ids: the prompt's tokens.
      params: how to decode it.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams


class LLM:
    """A language model that generates for batches with speculative decoding."""

    def __init__(
        self,
        model: str | None = None,
        *,
        tokenizer: str | None = None,
        drafter: str | Drafter | None = None,
        draft_model: str | None = None,
        method: str = "ems",
        dtype: str = "auto",
        max_batch_size: int = 8,
        max_model_len: int | None = None,
        draft_length: int | None = None,
        max_ngram: int | None = None,
        min_ngram: int | None = None,
        exact: bool = False,
        seed: int = 0,
    ):
        """Loads the model; the first prompt compiles it.

        Args:
          model: a directory, a GGUF file, one of our checkpoints or a hub id; None for the
            default model, SmolLM2-135M-Instruct.
          tokenizer: another tokenizer than the model's.
          drafter: "prompt-lookup" (the default), "none", or an object as
            `drafters.base.Drafter` says.
          draft_model: not there yet.
          method: "ems", or "none" for plain decoding.
          dtype: "auto", "float32", "bfloat16" or "float16".
          max_batch_size: B, samples decoded together; more prompts wait for a free slot.
          max_model_len: the most tokens of a sample, prompt and output; by default what the
            model was made for, but no more than 4096.
          draft_length: k, the most tokens drafted for a sample in a step; by default 7.
          max_ngram: longest n-gram prompt lookup looks for; by default 3.
          min_ngram: shortest one; by default 2.
          exact: one shape for every step, so that the output equals that of plain decoding with
            `exact` bit for bit, for every `max_batch_size` up to 16 on a CPU and 64 elsewhere
            (beyond, for the same one); slower.
          seed: accepted, and without effect on greedy decoding.

        Raises:
          UserError: the model cannot be had or loaded, the cache does not fit in memory, or
            options are wrong or contradict each other.
        """
        del seed
        if draft_model is not None:
            raise UserError("draft models are not there yet: leave draft_model out")
        lookup = {"draft_length": draft_length, "max_ngram": max_ngram, "min_ngram": min_ngram}
        self._drafter = choose_drafter(method, drafter, lookup)
        check_whole("max_batch_size", max_batch_size, 1)
        use_compile_cache()
        loaded = load_model(model, dtype=dtype, tokenizer=tokenizer)
        self.tokenizer: PreTrainedTokenizerBase | None = loaded.tokenizer
        self.name = loaded.name
        self._target: Any = loaded.model
        self._eos_ids = loaded.eos_token_ids
        self.max_model_len = self._max_model_len(max_model_len)
        capacity = round_up(self.max_model_len, CAPACITY_MULTIPLE)
        check_cache_fits(self._target, max_batch_size, capacity)
        self.engine = Engine(
            self._target,
            self._drafter,
            choose_ladder(max_batch_size, self._drafter.draft_length, exact),
            num_slots=max_batch_size,
            capacity=capacity,
        )

    def _max_model_len(self, wanted: int | None) -> int:
        longest = self._target.max_positions
        if wanted is None:
            return min(longest, DEFAULT_MAX_MODEL_LEN)
        check_whole("max_model_len", wanted, 2, longest)
        return wanted

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Generates for all prompts; results come in the order of the prompts.

        Args:
          prompts: texts, lists of token ids or conversations, any number of them, or one alone.
          sampling_params: one for all or one for each prompt.

        Raises:
          UserError: a prompt is empty, too long or not in the vocabulary.
        """
        many = prompt_list(prompts)
        params = params_of_each(sampling_params, len(many))
        requests = [
            self.request(prompt, each, str(number))
            for number, (prompt, each) in enumerate(zip(many, params, strict=True))
        ]
        outputs = {output.request_id: output for output in self.run(requests)}
        return [outputs[request.request_id] for request in requests]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Generates the next message of one conversation or of several.

        Args:
          messages: mappings with `role` and `content`, or a list of such conversations.
          sampling_params: as for `generate`.

        Raises:
          UserError: as for `generate`; or the model has no chat template.
        """
        if isinstance(messages, str):
            raise UserError("chat takes messages with 'role' and 'content'; text is for generate")
        return self.generate(messages, sampling_params)

    def request(self, prompt: Prompt, params: SamplingParams, request_id: str) -> Request:
        """Tokenises and checks one prompt.

        Args:
          prompt: text, token ids, or the messages of a conversation.
          params: how to decode it.
          request_id: comes back with the result.

        Raises:
          UserError: the prompt is empty, too long or not in the vocabulary, or it is text and
            there is no tokenizer.
        """
        text, ids = self._tokenise(prompt)
        if not ids:
            raise UserError("the prompt is empty: it must have at least one token")
        vocabulary = self._target.vocab_size
        for token in (*ids, *(params.stop_token_ids or ())):
            if not 0 <= token < vocabulary:
                raise UserError(
                    f"token id {token} is out of the vocabulary: {self.name} has {vocabulary}"
                )
        if len(ids) >= self.max_model_len:
            raise UserError(
                f"the prompt has {len(ids)} tokens and with {self.max_model_len} in all there "
                "is no room for an answer: shorten it or raise max_model_len"
            )
        if len(self._stop_ids(params)) > MAX_STOP_IDS:
            raise UserError(f"there are more than {MAX_STOP_IDS} stop tokens: give fewer")
        return Request(request_id, text, ids, params)

    def _tokenise(self, prompt: Prompt) -> tuple[str | None, tuple[int, ...]]:
        checked = check_prompt(prompt)
        if isinstance(checked, str):
            return checked, tuple(self._require_tokenizer()(checked)["input_ids"])
        if isinstance(checked, tuple):
            return None, checked
        text = self._render(checked)
        # The template writes the special tokens itself.
        tokens = self._require_tokenizer()(text, add_special_tokens=False)
        return text, tuple(tokens["input_ids"])

    def _render(self, messages: Sequence[Message]) -> str:
        """The messages as the model's chat template writes them."""
        from jinja2 import TemplateError

        tokenizer = self._require_tokenizer()
        if not tokenizer.chat_template:
            raise UserError(f"{self.name} has no chat template: give a plain prompt")
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise UserError(f"the chat template does not take these messages: {error}") from error
        return str(text)

    def _require_tokenizer(self) -> "PreTrainedTokenizerBase":
        if self.tokenizer is None:
            raise UserError(
                f"{self.name} has no tokenizer: give prompts as token ids, or name a tokenizer"
            )
        return self.tokenizer

    def _stop_ids(self, params: SamplingParams) -> tuple[int, ...]:
        eos_ids = () if params.ignore_eos else self._eos_ids
        return tuple(dict.fromkeys((*eos_ids, *(params.stop_token_ids or ()))))

    def run(
        self,
        requests: Iterable[Request | None],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[RequestOutput]:
        """Generates for a stream of requests, in constant memory.

        Args:
          requests: taken one by one as slots become free. None among them says that none is
            ready yet: those at hand go on meanwhile. If taking one raises, those before it are
            finished first.
          on_progress: called with the number of tokens generated since the last call.

        Yields:
          Each result as it is final, in the order in which they finish.

        Raises:
          UserError: the device ran out of memory.
        """
        jobs = (None if request is None else self._job(request) for request in requests)
        try:
            for finished in self.engine.run(jobs, on_progress):
                yield self._output(finished)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"the device ran out of memory with {self.engine.num_slots} samples of "
                f"{self.engine.capacity} tokens: lower max_batch_size or max_model_len"
            ) from error

    def _job(self, request: Request) -> Job:
        prompt, params = request.prompt_token_ids, request.params
        max_tokens = min(params.max_tokens, self.max_model_len - len(prompt))
        return Job(request, prompt, max_tokens, self._stop_ids(params))

    def _output(self, finished: Finished) -> RequestOutput:
        request: Request = finished.job.key  # type: ignore[assignment]
        last = finished.token_ids[-1]
        by_request = finished.stopped and last in (request.params.stop_token_ids or ())
        completion = CompletionOutput(
            index=0,
            text=self._text(finished),
            token_ids=finished.token_ids,
            finish_reason="stop" if finished.stopped else "length",
            stop_reason=last if by_request else None,
        )
        return RequestOutput(
            request.request_id,
            request.prompt,
            request.prompt_token_ids,
            [completion],
            finished.metrics,
        )

    def _text(self, finished: Finished) -> str | None:
        """The generated text, without the token that ended it.

        Decoded behind the end of the prompt and cut from it: some tokenizers drop the space at
        the beginning of what they decode.
        """
        if self.tokenizer is None:
            return None
        ids = list(finished.token_ids[:-1] if finished.stopped else finished.token_ids)
        before = list(finished.job.prompt[-CONTEXT_TOKENS:])
        context, whole, alone = (
            str(self.tokenizer.decode(tokens, skip_special_tokens=True))
            for tokens in (before, before + ids, ids)
        )
        return whole[len(context) :] if whole.startswith(context) else alone
