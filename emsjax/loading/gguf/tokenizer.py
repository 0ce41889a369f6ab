"""Rebuilds the tokenizer in a GGUF file's metadata with the `tokenizers` package."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from emsjax.errors import UserError, foreign
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.hf.keys import shown
from emsjax.loading.hf.unadvised import without_advice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# GGUF's token types.
_CONTROL, _USER_DEFINED = 3, 4

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
    r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _by_regex(pattern: str) -> Any:
    """Splits by `pattern`, then maps bytes to printable characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _smollm() -> Any:
    """Splits off each digit, then splits words as GPT-2 does."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


# Keys are values of `tokenizer.ggml.pre`.
_SPLITTERS = {
    "smollm": _smollm,
    "qwen2": lambda: _by_regex(_WORDS.format(digits=r"\p{N}")),
    "llama-bpe": lambda: _by_regex(_WORDS.format(digits=r"\p{N}{1,3}")),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}
_SPLITTERS["default"] = _SPLITTERS["gpt-2"]
# Other names of the same rules, which llama.cpp reads alike.
_LIKE_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3")
_SPLITTERS |= dict.fromkeys(_LIKE_LLAMA3, _SPLITTERS["llama-bpe"])
_SPLITTERS |= dict.fromkeys(("deepseek-r1-qwen", "megrez"), _SPLITTERS["qwen2"])


def gguf_tokenizer(file: GgufFile) -> "PreTrainedTokenizerBase | None":
    """Returns the tokenizer of a GGUF file, or None if its metadata has none.

    Raises:
      UserError: the type of tokenizer is not supported.
    """
    kind = file.get("tokenizer.ggml.model")
    if kind is None:
        return None
    tokens: list[str] = file.need("tokenizer.ggml.tokens")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{file.name} has a tokenizer of type {shown(kind)}, but only gpt2 and llama are "
            "supported; pass another tokenizer with --tokenizer, or use the model's safetensors "
            "copy."
        )
    remedy = "pass another tokenizer with --tokenizer, or use another GGUF file"
    with foreign(f"the tokenizer in {file.name} cannot be read", remedy):
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError("tokenizer.ggml.tokens is not a list of texts")
        build = _byte_level if kind == "gpt2" else _sentencepiece
        tokenizer = build(file, tokens)
        _check_special(file, tokens)
        tokenizer.add_tokens(_added(file, tokens))
        _prepend_bos(file, tokens, tokenizer)
        return _wrapped(file, tokens, tokenizer)


def _check_special(file: GgufFile, tokens: Sequence[str]) -> None:
    """Checks that the special tokens are in the vocabulary."""
    for role in ("bos", "eos", "unknown", "padding"):
        token = file.get(f"tokenizer.ggml.{role}_token_id", 0)
        if not isinstance(token, int) or not 0 <= token < len(tokens):
            raise ValueError(
                f"{role}_token_id {shown(token)} is not one of its {len(tokens)} tokens"
            )


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> Tokenizer:
    """Builds a GPT-2 tokenizer: merges over bytes that are mapped to printable characters."""
    splitter = file.get("tokenizer.ggml.pre", "default")
    if not isinstance(splitter, str) or splitter not in _SPLITTERS:
        raise UserError(
            f"{file.name} splits words by the rule {shown(splitter)}, but only "
            f"{', '.join(_SPLITTERS)} are supported; pass another tokenizer with --tokenizer."
        )
    merges = [tuple(merge.split(" ")) for merge in file.need("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        BPE(vocab=_ids(tokens), merges=merges, ignore_merges=splitter in _LIKE_LLAMA3)
    )
    tokenizer.pre_tokenizer = _SPLITTERS[splitter]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: Sequence[str]) -> Tokenizer:
    """Builds a Llama 2 tokenizer: merges by score, and bytes for unknown characters."""
    scores = file.need("tokenizer.ggml.scores")
    unknown = tokens[file.get("tokenizer.ggml.unknown_token_id", 0)]
    merges = _merges(tokens, scores)
    tokenizer = Tokenizer(
        BPE(_ids(tokens), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first" if prefix else "never", split=False
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns all pairs of pieces whose concatenation is a piece, best score first."""
    ids = _ids(tokens)
    found = [
        (-score, ids[token[:cut]], ids[token[cut:]])
        for token, score in zip(tokens, scores, strict=True)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _added(file: GgufFile, tokens: Sequence[str]) -> list[AddedToken]:
    """Returns the tokens that are never split: control and user-defined tokens."""
    kinds = file.get("tokenizer.ggml.token_type", [])
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _prepend_bos(file: GgufFile, tokens: Sequence[str], tokenizer: Tokenizer) -> None:
    """Makes the tokenizer start every text with the begin-of-text token, if the model needs it."""
    # Files without `add_bos_token` follow their family's convention.
    usual = file.get("tokenizer.ggml.model") == "llama"
    usual |= file.get("tokenizer.ggml.pre") in _LIKE_LLAMA3
    bos = file.get("tokenizer.ggml.bos_token_id")
    if bos is not None and file.get("tokenizer.ggml.add_bos_token", usual):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A",
            pair=f"{tokens[bos]} $A {tokens[bos]} $B",
            special_tokens=[(tokens[bos], bos)],
        )


def _wrapped(
    file: GgufFile, tokens: Sequence[str], tokenizer: Tokenizer
) -> "PreTrainedTokenizerBase":
    """Wraps `tokenizer` for `transformers`, with special tokens and chat template."""
    with without_advice():
        from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=int(file.need("{arch}.context_length")),
        **_special(file, tokens),
        **_chat_template(file),
    )


def _chat_template(file: GgufFile) -> dict[str, Any]:
    """Returns the chat template, or all by name if some have one, such as `tool_use`."""
    key = "tokenizer.chat_template"
    named = {
        name.removeprefix(f"{key}."): file.get(name)
        for name in file.metadata
        if name.startswith(f"{key}.")
    }
    default = file.get(key)
    if not named:
        return {"chat_template": default} if default else {}
    return {"chat_template": named | ({"default": default} if default else {})}


def _special(file: GgufFile, tokens: Sequence[str]) -> Mapping[str, str]:
    """Returns the special tokens as keyword arguments of `PreTrainedTokenizerFast`."""
    roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    ids = {short: file.get(f"tokenizer.ggml.{role}_token_id") for role, short in roles.items()}
    return {f"{short}_token": tokens[i] for short, i in ids.items() if i is not None}
