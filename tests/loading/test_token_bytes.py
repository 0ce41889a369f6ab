"""The bytes of tokens are those by which they lengthen a decoded text."""

import pytest

from emsjax.errors import UserError
from emsjax.loading.hf.token_bytes import token_bytes
from emsjax.loading.hf.tokenizer import decode
from emsjax.requests.detokenizer import special_tokens
from tests.tiny import VOCAB_SIZE, byte_level, words

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


def sentencepiece() -> "transformers.PreTrainedTokenizerFast":
    """Returns a tokenizer like Llama 2's."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "a",
        "\u2581a",
    ]
    pieces += ["\u2581\u2581", "é", "b\u2581c", "<0x4>"]
    model = tokenizers.models.BPE(
        {piece: place for place, piece in enumerate(pieces)}, [], byte_fallback=True
    )
    made = tokenizers.Tokenizer(model)
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


@pytest.mark.parametrize("make", [words, byte_level, sentencepiece])
def test_tokens_lengthen_a_text_by_their_bytes(make):
    tokenizer = make()
    size = len(tokenizer) + 3
    found = token_bytes(tokenizer, size, "the model")
    assert len(found) == size
    assert found[-3:] == [b""] * 3
    special = set(special_tokens(tokenizer))
    assert tokenizer.eos_token_id in special
    start = max(n for n, text in enumerate(found) if text.strip().isalnum())
    context = decode(tokenizer, [start, start], clean_up_tokenization_spaces=False)
    for token in range(size - 3):
        text = decode(tokenizer, [start, start, token], clean_up_tokenization_spaces=False)
        assert text.startswith(context)
        if token in special:
            assert found[token] == b""
        elif max(found[token]) < 0x80 or len(found[token]) > 1:
            assert text[len(context) :].encode() == found[token], token
        else:
            assert text[len(context) :] == "\ufffd", token
    letters = [token for token, text in enumerate(found) if text in (b"\xc3", b"\xa9")]
    if letters:
        first = found[letters[0]] == b"\xc3"
        assert decode(tokenizer, letters if first else letters[::-1]) == "é"


def test_an_unknown_decoder_is_refused():
    tokenizer = words(VOCAB_SIZE)
    tokenizer.backend_tokenizer.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(UserError, match="decoder WordPiece; leave structured_outputs out"):
        token_bytes(tokenizer, VOCAB_SIZE, "the model")
