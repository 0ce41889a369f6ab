"""The bytes that each token adds to a text."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emsjax.errors import UserError, foreign

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The space in tokens of SentencePiece.
_SPACE = "\u2581"


def token_bytes(tokenizer: "PreTrainedTokenizerBase", vocab_size: int, name: str) -> list[bytes]:
    """Returns the bytes of each token as it continues a text; none for tokens without text.

    Args:
      tokenizer: the model's tokenizer.
      vocab_size: V; tokens that the tokenizer does not have are without text.
      name: the model's name for messages.

    Raises:
      UserError: the tokenizer joins tokens in a way that is not known here.
    """
    with foreign(f"the tokenizer of {name} cannot be read", "name another tokenizer"):
        decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
        vocabulary = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
    read = _reader(_kinds(decoder), name)
    found = [b""] * vocab_size
    for text, token in vocabulary.items():
        if token < vocab_size and token not in added:
            found[token] = read(text)
    for token, what in added.items():
        if token < vocab_size and not what.special:
            found[token] = str(what.content).encode()
    return found


def _kinds(decoder: Any) -> set[str]:
    """Returns the types of a decoder and its parts."""
    if decoder is None:
        return set()
    if decoder["type"] == "Sequence":
        return set().union(*map(_kinds, decoder["decoders"]))
    return {decoder["type"]}


def _reader(kinds: set[str], name: str) -> Callable[[str], bytes]:
    if not kinds:  # tokens are words, joined by spaces
        return lambda text: b" " + text.encode()
    if "ByteLevel" in kinds:
        byte_of = _bytes_by_letter()
        return lambda text: bytes(byte_of[letter] for letter in text if letter in byte_of)
    if kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return _sentencepiece if "ByteFallback" in kinds else _with_spaces
    raise UserError(
        f"the bytes of the tokens of {name} are not known, because its tokenizer has the decoder "
        f"{', '.join(sorted(kinds))}; leave structured_outputs out"
    )


def _with_spaces(text: str) -> bytes:
    return text.replace(_SPACE, " ").encode()


def _sentencepiece(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return _with_spaces(text)


def _bytes_by_letter() -> dict[str, int]:
    """Returns the byte that each letter stands for in byte-level vocabularies, as GPT-2 began."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {chr(byte): byte for byte in printable}
    return found | {chr(256 + place): byte for place, byte in enumerate(others)}
