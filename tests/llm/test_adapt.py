"""AdapT: a separate temperature for the first token of an indented line."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax import LLM, SamplingParams, UserError
from emsjax.sampling.adapt import can_indent, classify, is_hard
from emsjax.sampling.rows import Rows

VOCABULARY = ["a", "  ", "\t", "\n", "x\n", "\n  ", ":\n\t", " b", "\n\n", "", " \n", "if  "]


@given(st.lists(st.integers(0, len(VOCABULARY) - 1), min_size=1, max_size=12))
def test_tokens_after_indentation_are_hard(tokens: list[int]):
    classes = jnp.asarray(classify(VOCABULARY))
    positions = jnp.arange(len(tokens), dtype=jnp.int32)
    text = jnp.asarray(tokens, jnp.int32)
    before = text[jnp.maximum(positions - 1, 0)]
    nothing = jnp.zeros((len(tokens), 0), jnp.int32)
    rows = Rows(jnp.zeros_like(positions), positions, text, before, nothing)
    found = np.asarray(is_hard(rows, classes))
    for place in range(len(tokens)):
        last, before = (VOCABULARY[t] for t in (tokens[place], tokens[place - 1]))
        hard = re.search(r"\n[ \t]+$", last) or (
            place > 0 and re.fullmatch(r"[ \t]+", last) and before.endswith("\n")
        )
        assert found[place] == bool(hard), (before, last)


@pytest.fixture(scope="module")
def llm(model_dir: str) -> LLM:
    """A model whose every fifth token is a line break and every seventh is blanks."""
    made = LLM(model_dir, max_batch_size=2, max_model_len=128, exact=True)
    texts = ["\n" if t % 5 == 0 else "  " if t % 7 == 0 else "x" for t in range(101)]
    made.engine.use_token_classes(classify(texts))
    return made


def test_only_hard_tokens_are_sampled(llm: LLM):
    """Each output first differs from the greedy one at a hard token."""
    breaks = list(range(5, 100, 5))
    bias = dict.fromkeys([*breaks, *range(7, 100, 7)], 2.0)
    params = SamplingParams(
        max_tokens=60,
        temperature=1e-6,  # like 0
        adapt_temperature=2.0,
        ignore_eos=True,
        logprobs=0,
        logit_bias=bias,
        n=8,
    )
    greedy = SamplingParams(max_tokens=60, ignore_eos=True, logit_bias=bias)
    (output,) = llm.generate([[7, 8, 9]], params)
    (plain,) = llm.generate([[7, 8, 9]], greedy)
    assert len({completion.token_ids for completion in output.outputs}) > 4
    for completion in output.outputs:
        tokens = [7, 8, 9, *completion.token_ids]
        hard = [
            place
            for place in range(3, len(tokens))
            if tokens[place - 1] % 7 == 0 and tokens[place - 1] % 5 and tokens[place - 2] % 5 == 0
        ]
        first = next((p for p in range(60) if tokens[p + 3] != plain.outputs[0].token_ids[p]), None)
        assert first is None or first + 3 in hard


def test_the_same_temperature_for_both_changes_nothing(llm: LLM):
    params = SamplingParams(max_tokens=40, temperature=0.8, seed=3)
    same = SamplingParams(max_tokens=40, temperature=0.8, adapt_temperature=0.8, seed=3)
    (one,), (other,) = llm.generate([[5, 7]], params), llm.generate([[5, 7]], same)
    assert one.outputs == other.outputs


def test_token_classes_are_read_from_the_tokenizer(model_dir: str):
    fresh = LLM(model_dir, max_batch_size=1, max_model_len=64)
    texts = {3: "\n", 4: "    ", 9: ":\n    "}
    decode = fresh.tokenizer.decode
    fresh.tokenizer.decode = lambda ids, **options: texts.get(ids[0]) or decode(ids, **options)
    fresh.generate([[7]], SamplingParams(max_tokens=1, temperature=0.5, adapt_temperature=0.9))
    assert {t: int(c) for t, c in enumerate(fresh.engine.token_classes) if c} == {3: 2, 4: 1, 9: 4}


def test_a_tokenizer_without_indentation_is_reported(model_dir: str):
    fresh = LLM(model_dir, max_batch_size=1, max_model_len=64)
    params = SamplingParams(temperature=0.5, adapt_temperature=0.9)
    for _ in range(2):
        with pytest.raises(UserError, match=r"adapt_temperature has no effect with .*leave it out"):
            fresh.request([7], params, "0")


def test_which_vocabularies_can_indent():
    assert can_indent(classify(["a", "  ", "\n"]))
    assert can_indent(classify(["a", "\n  "]))
    for texts in ([], ["a"], ["a", "\n"], ["a", "  "]):
        assert not can_indent(classify(texts))
