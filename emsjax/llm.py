"""`LLM`, the Python interface, with the names of vLLM."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax

from emsjax.build_drafter import (
    build_drafter,
    check_drafting,
    default_length,
    draft_model_of,
    drafter_name,
    find_draft,
)
from emsjax.build_engine import build_engine, compile_ahead
from emsjax.cluster.devices import devices_of_hosts
from emsjax.costs.pricing import Pricing
from emsjax.engine.devices import Devices, shared_by
from emsjax.engine.drafter import Drafter
from emsjax.engine.led import follow
from emsjax.engine.policy import EMS
from emsjax.errors import UserError, check_flag, check_name, check_whole, short
from emsjax.host.cache import use_compile_cache
from emsjax.host.device import check_device
from emsjax.limits import BATCH_SIZE, DEFAULT_MAX_MODEL_LEN, MAX_BATCH_SIZE, MAX_DEVICES, MAX_SEED
from emsjax.loading.dtypes import check_quantize
from emsjax.loading.fingerprint import fingerprint
from emsjax.loading.fit import fewest_devices
from emsjax.loading.load import find_model, load_model
from emsjax.loading.opened import OpenedModel
from emsjax.requests.bar import shown_progress
from emsjax.requests.chat import ChatOptions
from emsjax.requests.outputs import Piece, RequestOutput
from emsjax.requests.prompts import Message, Prompt, conversations, params_of_each, prompt_list
from emsjax.requests.reader import RequestReader
from emsjax.requests.request import Request
from emsjax.requests.runner import RequestRunner
from emsjax.requests.sampling_params import SamplingParams
from emsjax.requests.speculative_config import drafting_options
from emsjax.requests.vllm_llm import LLM_OPTIONS, batch_size, dtype_name, refuse_attribute
from emsjax.requests.vllm_names import takes_vllm_names
from emsjax.requests.vllm_requests import CHAT, GENERATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from emsjax.cluster.hosts import Follower, Hosts


class LLM(RequestRunner):
    """A language model that generates text for batches of prompts with speculative decoding.

    Other names of vLLM are accepted with values that change nothing here; with any other value they
    are refused with a message that says what to use instead.
    """

    @takes_vllm_names("an option of LLM", LLM_OPTIONS)
    def __init__(
        self,
        model: str | None = None,
        *,
        tokenizer: str | None = None,
        drafter: str | Drafter | None = None,
        draft_model: str | None = None,
        draft_quantize: str | None = None,
        method: str = "ems",
        dtype: str = "auto",
        quantize: str | None = None,
        kv_dtype: str | None = None,
        tensor_parallel_size: int | str = 1,
        max_batch_size: int | None = None,
        prefix_slots: int = 0,
        enable_prefix_caching: bool | None = None,
        max_model_len: int | None = None,
        draft_length: int | None = None,
        max_ngram: int | None = None,
        min_ngram: int | None = None,
        planner: bool = True,
        exact: bool = False,
        seed: int = 0,
        trace: bool = False,
        max_num_seqs: int | None = None,
        speculative_config: Mapping[str, Any] | None = None,
        hosts: "Hosts | None" = None,
    ):
        """Loads the model; the first prompt compiles it.

        Args:
          model: a directory, a GGUF file, a checkpoint made by `python -m emsjax.convert`, or a hub
            id. The default is SmolLM2-135M-Instruct.
          tokenizer: the directory or hub id of a tokenizer to use instead of the model's.
          drafter: "prompt-lookup", "draft-model", "combined" (prompt lookup where it finds a
            confident match, the draft model elsewhere), "none", or an object that implements
            `engine.drafter.Drafter`. The default is "combined" if there is a draft model (the
            default model comes with one), else "prompt-lookup".
          draft_model: the directory or hub id of a smaller model with the same vocabulary, of a
            published head for this model (EAGLE, DFlash or Medusa), or of a draft trained for it
            (`python -m emsjax.train`). Or "mtp", the MTP module in the model's own checkpoint, if
            it has one; "self-window", the model itself on a part of its cache; or "own-layers", the
            shipped draft of this kind, if there is one for the model.
          draft_quantize: "int8" to turn a smaller model's weights into int8, whatever the target's
            are. Its drafts then cost less memory and time, and are right a little less often.
          method: "ems"; "none" for plain decoding; or one of three methods for comparison:
            "vanilla" pads the inputs and aligns the cache as most implementations do, "unpad-kv"
            only pads the inputs, and "unpad-input" only aligns the cache. All write the same text.
          dtype: type of weights and activations: "float32", "bfloat16", "float16", or "auto" for
            the checkpoint's own (on a CPU float32; elsewhere bfloat16 for float32 and quantised
            checkpoints).
          quantize: "int8" to turn the weights into int8 when they are loaded, one scale per output
            channel. This halves the memory of 16-bit weights and shortens steps, on a CPU only
            those of few rows. "int4" keeps a checkpoint's 4-bit weights, "none" makes floats of all
            quantised weights. The default leaves weights as the checkpoint has them, but makes
            floats of 4-bit weights where those would be slower: on a CPU, and if no kernel suits
            their sizes.
          kv_dtype: "int8" to keep the K/V cache in int8, one scale per token and head. This halves
            its memory, at a small loss of quality. The default is the model's dtype. The cache of a
            draft model is not changed.
          tensor_parallel_size: how many devices of this machine share the model, each with its part
            of the weights and of the cache. It must divide the model's heads and widths. "auto"
            takes as few as can hold the model and the cache.
          max_batch_size: B, the samples decoded together; 8 by default, and at most 65536. Further
            prompts wait for a free slot.
          prefix_slots: additional slots that only keep texts, so that later prompts that begin like
            them need not be read in full. Each costs the memory of a sample.
          enable_prefix_caching: false to read prompts in full even if they share their beginning
            with a text in the cache. The outputs of one prompt still share it.
          max_model_len: the most tokens of a sample, prompt plus output. The default is the
            model's own limit, but at most 4096.
          draft_length: k, the most tokens to draft for a sample in a step. The default is 7, and 15
            on a GPU or TPU with at most 32 samples (not with `exact` or the methods that pad).
          max_ngram: the longest n-gram that prompt lookup searches for; 16 by default.
          min_ngram: the shortest n-gram that prompt lookup searches for; 1 by default.
          planner: whether each step verifies only the drafts that pay off, judged by the cost of
            steps on this device, which is estimated for short runs and measured for long ones. If
            false, all drafts are verified. Neither `exact` nor the methods that pad use it.
          exact: whether all steps have the same shape, which is slower. The output then equals
            that of plain decoding with `exact`, bit for bit: on a CPU for any two values of
            `max_batch_size` up to 16, on a TPU up to 64; beyond that, and on a GPU, for equal
            values.
          seed: 0 to 2**63 - 1; requests without a seed derive theirs from it.
          trace: whether outputs record the origin of each token and what was drafted
            (`CompletionOutput.trace`), for `Report` to show.
          max_num_seqs: vLLM's name for `max_batch_size`.
          speculative_config: vLLM's form of `drafter` and its options: a mapping with `method`
            ("ngram", "draft_model", "eagle", "eagle3", "dflash" or "medusa"), `model`,
            `num_speculative_tokens`, `prompt_lookup_max` and `prompt_lookup_min`.
          hosts: the hosts whose devices share the model, as `join_hosts` returns them. Host 0
            generates, and the others call `follow`. All must give the same options.

        Raises:
          UserError: the model cannot be found or loaded, the cache does not fit in memory, or
            options are invalid or contradict each other.
        """
        _check_names(model=model, tokenizer=tokenizer, draft_model=draft_model)
        _check_names(quantize=quantize, kv_dtype=kv_dtype, draft_quantize=draft_quantize)
        check_quantize(draft_quantize, "draft_quantize")
        shares = enable_prefix_caching is None or enable_prefix_caching
        _check_flags(planner=planner, exact=exact, trace=trace, enable_prefix_caching=shares)
        given = {
            "drafter": drafter,
            "draft_model": draft_model,
            "draft_quantize": draft_quantize,
            "draft_length": draft_length,
            "max_ngram": max_ngram,
            "min_ngram": min_ngram,
        }
        options = drafting_options(given, speculative_config)
        drafting = check_drafting(method, options.pop("drafter"), options)
        max_batch_size = batch_size(max_batch_size, max_num_seqs, BATCH_SIZE)
        dtype = dtype_name(dtype)
        check_whole("max_batch_size", max_batch_size, 1, MAX_BATCH_SIZE)
        check_whole("prefix_slots", prefix_slots, 0, MAX_BATCH_SIZE - max_batch_size)
        asked = _devices_asked(hosts, tensor_parallel_size)
        check_whole("seed", seed, 0, MAX_SEED)

        # All values are possible. What follows takes time.
        find_draft(drafting)
        use_compile_cache()
        check_device()
        num_slots = max_batch_size + prefix_slots
        kinds: dict[str, Any] = {"dtype": dtype, "quantize": quantize, "kv_dtype": kv_dtype}
        devices = _devices_taken(
            asked, model, exact, num_slots=num_slots, max_model_len=max_model_len, **kinds
        )
        compile_ahead(kv_dtype or dtype)
        loaded = load_model(model, **kinds, tokenizer=tokenizer, devices=devices)
        length = default_length(method, exact, num_slots)

        self.target = loaded.model
        self._drafter = build_drafter(drafting, loaded, dtype, length)
        self._hosts, self._requests = hosts, 0
        self.max_model_len = self._max_model_len(max_model_len)
        engine = build_engine(
            self.target,
            self._drafter,
            name=loaded.name,
            max_batch_size=num_slots,
            max_model_len=self.max_model_len,
            method=method,
            exact=exact,
            trace=trace,
            devices=devices,
            hosts=hosts if hosts is not None and hosts.leads else None,
        )
        if hosts is not None:
            models = find_model(model), draft_model_of(drafting, self._drafter)
            _check_agreed(hosts, loaded.name, models, self._drafter)
        plans = planner and not exact and self._drafter.draft_length > 0 and engine.policy == EMS
        super().__init__(
            engine,
            RequestReader(loaded, self.target.vocab_size, self.max_model_len, seed),
            loaded.tokenizer,
            loaded.name,
            max_batch_size=max_batch_size,
            share_prefixes=shares,
            prices=Pricing(engine, loaded.name) if plans else None,
        )

    def __repr__(self) -> str:
        facts = {
            "max_batch_size": self.max_batch_size,
            "max_model_len": self.max_model_len,
            "drafter": drafter_name(self._drafter),
            "dtype": str(self.target.dtype),
            "platform": jax.default_backend(),
        }
        if self.engine.devices.number > 1:
            facts["tensor_parallel_size"] = self.engine.devices.number
        shown = (f"{name}={value!r}" for name, value in facts.items())
        return f"LLM({', '.join((repr(self.name), *shown))})"

    if not TYPE_CHECKING:  # for a type checker, this would be any attribute at all

        def __getattr__(self, name):
            try:
                refuse_attribute(name)
            except UserError as error:
                raise AttributeError(str(error)) from None
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def follow(self) -> None:
        """Lets the devices of this host work for host 0, and returns when host 0 has ended.

        Raises:
          UserError: this host does not follow; or host 0 is lost, or has ended because of an error.
        """
        if self._hosts is None or self._hosts.leads:
            raise UserError("host 0 generates; only the others call follow()")
        follow(self.engine, cast("Follower", self._hosts))

    def get_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Returns the model's tokenizer.

        Raises:
          UserError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError(f"{self.name} has no tokenizer; name one with LLM(tokenizer=...)")
        return self.tokenizer

    def _max_model_len(self, requested: int | None) -> int:
        longest = self.target.max_positions
        if requested is None:
            return min(longest, DEFAULT_MAX_MODEL_LEN)
        check_whole("max_model_len", requested, 2, longest)
        return requested

    @takes_vllm_names("an option of generate", GENERATE)
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Generates outputs for all prompts.

        Args:
          prompts: one prompt or several; each is text, a list of token ids, a conversation, or one
            of these in a dictionary under `prompt`, `prompt_token_ids` or `messages`.
          sampling_params: one for all prompts or one for each; the defaults of `SamplingParams` if
            left out.
          use_tqdm: whether to show a progress bar on standard error, if that is a terminal.

        Returns:
          The results, in the order of the prompts. If the model or its tokenizer fails during an
          output, that output has the `finish_reason` "error" and an `error`; the others are not
          affected.

        Raises:
          UserError: a prompt is empty, too long or outside the vocabulary, or the parameters do
            not fit the model.
        """
        return self._outputs(self._all_requests(prompts, sampling_params), use_tqdm)

    def _outputs(self, requests: list[Request], show: Any) -> list[RequestOutput]:
        """Runs all requests, and returns their results in order."""
        if not isinstance(show, bool):
            raise UserError(f"use_tqdm={short(show)} must be true or false")
        outputs: dict[str, RequestOutput] = {}
        with shown_progress(len(requests), show) as advance:
            for output in self.run(requests, on_progress=lambda tokens: advance(0, tokens)):
                outputs[output.request_id] = output
                advance(1, 0)
        return [outputs[request.request_id] for request in requests]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[Piece]:
        """Generates outputs for all prompts and yields each piece of text as soon as it is final.

        Args:
          prompts: as for `generate`.
          sampling_params: as for `generate`.

        Yields:
          Pieces of all outputs as they are generated. Joined, the pieces of an output are its
          text. `request_id` counts up in the order of the prompts.

        Raises:
          UserError: as for `generate`, before the first piece.
        """
        return self.run_streaming(self._all_requests(prompts, sampling_params))

    def _all_requests(
        self, prompts: Any, sampling_params: Any, chat: ChatOptions | None = None
    ) -> list[Request]:
        many = prompt_list(prompts)
        params = params_of_each(sampling_params, len(many))
        first = self._requests
        self._requests += len(many)
        return [
            self.request(prompt, each, str(first + number), chat)
            for number, (prompt, each) in enumerate(zip(many, params, strict=True))
        ]

    @takes_vllm_names("an option of chat", CHAT)
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Generates the next message of one conversation or several.

        Args:
          messages: a conversation, which is a list of mappings with `role` and `content`, or a list
            of conversations. The content is text or a list of parts
            `{"type": "text", "text": ...}`.
          sampling_params: as for `generate`.
          use_tqdm: as for `generate`.
          chat_template: a template in Jinja to use instead of the model's.
          add_generation_prompt: whether the prompt ends with the beginning of the model's answer.
          continue_final_message: whether the model continues the last message instead of
            answering. It needs `add_generation_prompt=False`.
          tools: JSON schemas of the functions that the model may call, for the template.
          chat_template_kwargs: further variables of the template, such as `enable_thinking`.

        Returns:
          As `generate`, in the order of the conversations.

        Raises:
          UserError: as for `generate`; or the model has no chat template, or the template does not
            read the tools or a variable.
        """
        options = ChatOptions(
            chat_template,
            add_generation_prompt,
            continue_final_message,
            tools,
            chat_template_kwargs,
        )
        requests = self._all_requests(conversations(messages), sampling_params, options)
        return self._outputs(requests, use_tqdm)


def _check_names(**options: Any) -> None:
    for option, name in options.items():
        check_name(option, name)


def _check_flags(**options: Any) -> None:
    for option, flag in options.items():
        check_flag(option, flag)


def _check_agreed(
    hosts: "Hosts", name: str, models: Sequence[OpenedModel | None], drafter: Drafter
) -> None:
    """Checks that all hosts have the same model and draft.

    Args:
      hosts: who must agree.
      name: of the model.
      models: the files of the model, and those of the draft model if there is one.
      drafter: whose weights are compared, too.

    Raises:
      UserError: a host has others.
    """
    found = fingerprint([each for each in models if each is not None], drafter.weights)
    hosts.agree(
        found,
        f"has another model or draft than host 0, which has {name}; name the same on all hosts",
    )


def _devices_asked(hosts: "Hosts | None", asked: int | str) -> int | str:
    """Returns how many devices share the model: a number, or "auto".

    Raises:
      UserError: the number is not one, or not that of all devices of the hosts.
    """
    if hosts is not None:
        return devices_of_hosts(asked)
    if asked != "auto":
        check_whole("tensor_parallel_size", asked, 1, MAX_DEVICES)
    return asked


def _devices_taken(asked: int | str, model: str | None, exact: bool, **needs: Any) -> Devices:
    """Returns the devices that share the model: as many as asked for, or as few as hold it.

    Args:
      asked: see `_devices_asked`.
      model: as for `LLM`.
      exact: as for `LLM`.
      needs: what they must hold, see `fewest_devices`.

    Raises:
      UserError: there are too few devices.
    """
    if asked == "auto":
        asked = fewest_devices(find_model(model), **needs)
    return shared_by(int(asked), ordered_sums=exact)
