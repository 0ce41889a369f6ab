"""Growing text: it ends at a stop string, never changes later, and has no half characters."""

from functools import cache
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.requests.detokenizer import Detokenizer
from emsjax.requests.transcript import Transcript

STOP_ID = 300


def wrapped(tokenizer, specials: range):
    """Wraps a tokenizer as `transformers` does, adding special tokens that have no text."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens([AddedToken(f"<s{n}>", special=True) for n in specials])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def byte_tokenizer():
    """Like GPT-2's: each byte is a token, and so are some pairs; 298 to 300 are special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [a + b for a in alphabet[60:66] for b in alphabet[60:67]]
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *pairs])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(tokenizer, range(len(vocabulary), 301))


@cache
def fallback_tokenizer():
    """Like Llama 2's: words, and bytes for all other text; decoding drops the first space.

    A single byte too many makes its decoder reject the whole run of bytes.
    """
    from tokenizers import Tokenizer, decoders, models

    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "\u2581ab", "b", "\u2581a"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(tokenizer, range(len(vocabulary), 301))


def ids(text: str) -> list[int]:
    """The ids of a text, one token per byte."""
    from tokenizers import pre_tokenizers

    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    vocabulary = byte_tokenizer().get_vocab()
    return [vocabulary[char] for piece, _ in pieces for char in piece]


def transcript(prompt: list[int] | None = None, tokenizer=None, **options) -> Transcript:
    before = ids("Say:") if prompt is None else prompt
    detokenizer = Detokenizer(tokenizer or byte_tokenizer(), before)
    return Transcript(detokenizer, stop_ids=(STOP_ID,), **options)


@st.composite
def cut(draw, tokens: st.SearchStrategy[list[int]]) -> list[list[int]]:
    """Cuts tokens into runs that come at once."""
    rest, parts = draw(tokens), []
    while rest:
        count = draw(st.integers(1, len(rest)))
        parts.append(rest[:count])
        rest = rest[count:]
    return parts


texts = st.text(alphabet="ab é日🎉\n", max_size=20)


@given(cut(texts.map(ids)))
def test_pieces_make_up_the_text_without_half_characters(parts):
    growing, seen = transcript(), ""
    for part in parts:
        assert growing.feed(part) is None
        piece = growing.take()
        assert "\ufffd" not in piece
        seen += piece
    growing.finish()
    seen += growing.take()
    whole = byte_tokenizer().decode([token for part in parts for token in part])
    assert seen == growing.text == whole


any_tokens = st.lists(st.integers(0, 299), max_size=30)
TOKENIZERS = {"byte-level": byte_tokenizer, "byte-fallback": fallback_tokenizer}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_text_does_not_depend_on_how_many_tokens_come_at_once(tokenizer: str):
    made = TOKENIZERS[tokenizer]()

    @settings(max_examples=200)
    @given(cut(any_tokens), any_tokens)
    def any_cut(parts: list[list[int]], prompt: list[int]) -> None:
        tokens = [token for part in parts for token in part]
        once, growing = transcript(prompt, made), transcript(prompt, made)
        watched = transcript(prompt, made, stop=["never there"])
        once.feed_all(tokens)
        watched.feed(tokens)
        seen = ""
        for part in parts:
            growing.feed(part)
            seen += growing.take()
        growing.finish()
        assert once.finish() == watched.finish() == growing.text == seen + growing.take()

    any_cut()


class Failing:
    """A tokenizer that fails on one token."""

    def __init__(self, token: int):
        self._token, self._tokenizer = token, byte_tokenizer()
        self.added_tokens_decoder = self._tokenizer.added_tokens_decoder

    def decode(self, tokens: list[int], **options: bool) -> str:
        if self._token in tokens:
            raise IndexError("piece id is out of range")
        return self._tokenizer.decode(tokens, **options)


@settings(max_examples=50)
@given(cut(texts.map(ids)), texts.map(ids))
def test_the_text_ends_before_a_token_that_cannot_be_decoded(parts, rest):
    (token,) = ids("X")
    before = [token for part in parts for token in part]
    once, growing = (transcript(tokenizer=Failing(token)) for _ in range(2))
    once.feed_all([*before, token, *rest])
    for part in parts:
        assert growing.feed(part) is None
    assert growing.feed([token, *rest]) == 1
    assert once.finish() == growing.finish() == byte_tokenizer().decode(before)
    for each in (once, growing):
        assert each.error.startswith("the tokenizer cannot turn tokens into text (IndexError: ")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_whole_characters_decode_as_they_do_after_the_prompt(tokenizer: str):
    """With words, characters of several bytes and tokens without text, in runs of any length."""
    made = TOKENIZERS[tokenizer]()
    characters = [list(character.encode()) for character in ("日", "é", "🎉", "\n", " ")]
    if tokenizer == "byte-level":
        characters = [ids(bytes(character).decode()) for character in characters]
    words = st.sampled_from([*characters, [299], [256], [257], [259]])

    @settings(max_examples=200)
    @given(st.lists(words, max_size=30), st.lists(words, max_size=20))
    def any_text(prompt: list[list[int]], output: list[list[int]]) -> None:
        before, tokens = list(chain(*prompt)), list(chain(*output))
        growing = transcript(before, made)
        growing.feed(tokens)
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        context, whole = (made.decode(each, **options) for each in (before, before + tokens))
        assert whole == context + growing.finish()

    any_text()


def first_stop(text: str, stops: list[str], min_tokens: int) -> tuple[str, str | None, int]:
    """Finds text, stop string and number of tokens by trying every prefix, byte by byte."""
    data = text.encode()
    before = 0
    for count in range(1, len(data) + 1):
        shown = data[:count].decode(errors="ignore")
        found = {stop: shown.rfind(stop) for stop in stops}
        new = {s: p for s, p in found.items() if p >= 0 and p + len(s) > before}
        before = len(shown)
        if new and count >= min_tokens:
            place = min(new.values())
            stop = next(s for s in stops if new.get(s) == place)
            return shown[:place], stop, count
    return text, None, len(data)


@settings(max_examples=200)
@given(
    st.text(alphabet="abé", max_size=20),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(0, 8),
    st.data(),
)
def test_stop_strings_cut_at_the_first_whole_one(text, stops, min_tokens, data):
    parts = data.draw(cut(st.just(ids(text))))
    expected, stop, count = first_stop(text, stops, min_tokens)
    growing, seen, tokens = transcript(stop=stops, min_tokens=min_tokens), "", 0
    for part in parts:
        kept = growing.feed(part)
        tokens += len(part) if kept is None else kept
        seen += growing.take()
        assert expected.startswith(seen)  # returned text never changes
        if kept is not None:
            break
    growing.finish()
    assert seen + growing.take() == growing.text == expected
    assert (growing.stop, tokens) == (stop, count)


def test_a_stop_token_has_no_text_and_does_not_hide_any():
    growing = transcript(stop=["xyz"])
    assert growing.feed([*ids("ab x"), STOP_ID]) is None
    assert growing.take() == "ab "  # x may begin the stop string
    assert growing.finish() == "ab x"
    assert growing.take() == "x"


def test_a_character_may_begin_in_the_prompt():
    growing = transcript(ids("é")[:1])
    growing.feed(ids("é")[1:] + ids("a"))
    assert growing.finish() == "éa"


def test_an_incomplete_character_is_returned_at_the_end():
    growing = transcript()
    growing.feed(ids("a日")[:-1])
    assert growing.take() == "a"
    growing.finish()
    assert growing.take() == "\ufffd"


def test_a_stop_string_before_half_a_character_is_found_at_once():
    growing = transcript(stop=["a"])
    assert growing.feed([*ids("b"), 256, *ids("日")[:2]]) is None  # none of the pairs contains an a
    growing = transcript(stop=["b "])
    assert growing.feed(ids("ab 日")[:4]) == 3
    assert growing.finish() == "a"


def test_special_tokens_have_no_text():
    growing = transcript()
    growing.feed([*ids("a"), 299, *ids("b")])
    assert growing.finish() == "ab"


def test_without_a_tokenizer_there_is_no_text():
    growing = Transcript(None)
    assert growing.feed([1, 2, 3]) is None
    assert growing.finish() == ""


@pytest.mark.parametrize("count", [1, 9, 40])
def test_a_word_tokenizer_keeps_its_spaces(count: int):
    from tests.tiny import words

    prompt, output = [7, 8, 9], [11, 12] * count
    growing = Transcript(Detokenizer(words(), prompt))
    for token in output:
        growing.feed([token])
    assert growing.finish() == "".join(f" w{token}" for token in output)


@given(cut(st.lists(st.integers(0, 299), max_size=30)))
def test_special_tokens_may_be_shown(parts):
    tokens = [token for part in parts for token in part]

    def shown() -> Transcript:
        return Transcript(Detokenizer(byte_tokenizer(), ids("Say:"), skip_special_tokens=False))

    once, growing = shown(), shown()
    once.feed_all(tokens)
    seen = ""
    for part in parts:
        growing.feed(part)
        seen += growing.take()
    growing.finish()
    assert once.finish() == growing.text == seen + growing.take()
    assert growing.text.count("<s299>") == tokens.count(299)


@given(cut(texts.map(ids)), st.lists(st.sampled_from(["a", "ab", "bé", "\n"]), min_size=1))
def test_an_included_stop_string_ends_the_text(parts, stop: list[str]):
    cutting, keeping = transcript(stop=stop), transcript(stop=stop, include_stop=True)
    seen = ""
    for part in parts:
        kept = cutting.feed(part)
        assert keeping.feed(part) == kept
        seen += keeping.take()
        if kept is not None:
            break
    keeping.finish()
    assert seen + keeping.take() == keeping.text == cutting.finish() + (cutting.stop or "")


@pytest.mark.parametrize("include", [False, True])
def test_a_special_stop_token_is_text_if_both_are_asked_for(include: bool):
    for once in (False, True):
        detokenizer = Detokenizer(byte_tokenizer(), [], skip_special_tokens=False)
        growing = Transcript(detokenizer, stop_ids=(STOP_ID,), include_stop=include)
        (growing.feed_all if once else growing.feed)([*ids("ab"), STOP_ID])
        assert growing.finish() == ("ab<s300>" if include else "ab")
