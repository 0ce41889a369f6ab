"""Turns prompts and parameters into checked requests for one model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emsjax.engine.grammar_table import table_size
from emsjax.errors import UserError, short
from emsjax.limits import MAX_STOP_IDS
from emsjax.loading.hf.token_bytes import token_bytes
from emsjax.loading.hf.tokenizer import encode, render
from emsjax.loading.load import LoadedModel
from emsjax.requests.bad_words import with_bad_words, without_end
from emsjax.requests.chat import ChatOptions
from emsjax.requests.configured import read_configured
from emsjax.requests.detokenizer import Detokenizer
from emsjax.requests.grammars import Grammars
from emsjax.requests.prompts import Prompt, check_prompt
from emsjax.requests.request import (
    Request,
    check_choice_left,
    check_stop_strings,
    check_tokens,
    derive_seed,
)
from emsjax.requests.sampling_params import SamplingParams
from emsjax.requests.structured import StructuredOutputsParams
from emsjax.sampling.automaton import Automaton

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RequestReader:
    """Tokenises prompts, fills in default parameters, and checks both against the model."""

    def __init__(self, loaded: LoadedModel, vocab_size: int, max_model_len: int, seed: int):
        """Prepares for one model.

        Args:
          loaded: the model with its tokenizer.
          vocab_size: V.
          max_model_len: the most tokens of a sample, prompt plus output.
          seed: the seed from which requests without one derive theirs.

        Raises:
          UserError: the model's generation config has an invalid value.
        """
        self._loaded = loaded
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._seed = seed
        self._configured = read_configured(loaded.generation_config, loaded.name)
        check_tokens(self._configured.alone(), vocab_size, loaded.name)
        self._grammars = Grammars(self._token_bytes, *table_size(vocab_size), loaded.name)

    def read(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        chat: ChatOptions | None = None,
    ) -> Request:
        """Returns one checked request; see `LLM.request`."""
        text, ids = self.tokenise(prompt, chat)
        self._check_ids(ids)
        if self._loaded.tokenizer is not None and params.detokenize:
            Detokenizer(self._loaded.tokenizer, ids)  # fails here if it does not take these ids
        room = self._max_model_len - len(ids)
        if params.min_tokens is not None and params.min_tokens > room:
            raise UserError(
                f"min_tokens={params.min_tokens} is more than the {room} tokens that the prompt "
                f"leaves within max_model_len={self._max_model_len}; lower it or shorten the prompt"
            )
        params = self._configured.fill(params, len(ids))
        params = without_end(params, self._eos_ids(params))
        if params.bad_words:
            params = with_bad_words(params, self._tokenizer("bad_words need one"))
        stop_ids = self._stop_ids(params)
        return Request(
            request_id,
            text,
            ids,
            params,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            stop_ids=stop_ids,
            seed=derive_seed(self._seed, request_id) if params.seed is None else params.seed,
            vocab_size=self._vocab_size,
            has_text=self._loaded.tokenizer is not None and params.detokenize,
            grammar=self.grammar(params, stop_ids),
        )

    def grammar(
        self, params: SamplingParams, stop_ids: Sequence[int] | None = None
    ) -> Automaton | None:
        """Returns the automaton of structured outputs, which is kept for later requests.

        Args:
          params: the parameters.
          stop_ids: the tokens that end the output; None if they are not known yet.

        Raises:
          UserError: the outputs cannot be compiled, or nothing could end them.
        """
        outputs = params.structured_outputs
        if outputs is None:
            return None
        assert isinstance(outputs, StructuredOutputsParams)
        self._tokenizer("structured_outputs need one")
        if stop_ids is not None and not stop_ids:
            raise UserError(
                f"structured_outputs end with a stop token, and {self._loaded.name} has none; give "
                "stop_token_ids"
            )
        return self._grammars.automaton(outputs)

    def _token_bytes(self) -> list[bytes]:
        return token_bytes(self._tokenizer(), self._vocab_size, self._loaded.name)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not ids:
            raise UserError("the prompt is empty; give at least one token")
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise UserError(
                    f"token id {short(token)} is outside the vocabulary; {self._loaded.name} has "
                    f"{self._vocab_size} tokens, from 0 on"
                )
        if len(ids) >= self._max_model_len:
            raise UserError(
                f"the prompt has {len(ids)} tokens, which leaves no room for an output within "
                f"max_model_len={self._max_model_len}; shorten the prompt or raise max_model_len"
            )

    def _eos_ids(self, params: SamplingParams) -> tuple[int, ...]:
        return () if params.ignore_eos else tuple(self._loaded.eos_token_ids)

    def _stop_ids(self, params: SamplingParams) -> tuple[int, ...]:
        """Returns the tokens that end the output, after checking parameters against the model."""
        check_tokens(params, self._vocab_size, self._loaded.name)
        own = params.stop_token_ids or ()
        stop_ids = tuple(dict.fromkeys((*self._eos_ids(params), *own)))
        if len(stop_ids) > MAX_STOP_IDS:
            raise UserError(
                f"there are {len(stop_ids)} stop tokens, the model's included; give at most "
                f"{MAX_STOP_IDS}"
            )
        check_choice_left(params, stop_ids, self._vocab_size)
        if params.stop or params.adapt_temperature is not None:
            tokenizer = self._tokenizer("stop strings and adapt_temperature need one")
            check_stop_strings(params, stop_ids, tokenizer)
        return stop_ids

    def tokenise(
        self, prompt: Prompt, chat: ChatOptions | None = None
    ) -> tuple[str | None, tuple[int, ...]]:
        """Returns a prompt's text, None if it was given as token ids, and its token ids.

        Raises:
          UserError: the prompt is malformed, or the tokenizer or chat template does not take it.
        """
        chat = chat or ChatOptions()
        checked = check_prompt(prompt)
        if isinstance(checked, tuple):
            return None, checked
        # A chat template writes the special tokens itself.
        plain = isinstance(checked, str)
        tokenizer, name = self._tokenizer(), self._loaded.name
        if isinstance(checked, str):
            text = checked
        else:
            text = render(
                tokenizer,
                checked,
                name,
                template=chat.chat_template,
                tools=chat.tools or (),
                arguments=lambda template: chat.arguments(template, name),
            )
        return text, encode(tokenizer, text, name, special=plain)

    def _tokenizer(
        self, why: str = "give prompts as token ids, or name a tokenizer"
    ) -> "PreTrainedTokenizerBase":
        if self._loaded.tokenizer is None:
            raise UserError(f"{self._loaded.name} has no tokenizer; {why}")
        return self._loaded.tokenizer
