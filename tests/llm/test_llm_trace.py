"""`LLM(trace=True)`: the traces of outputs, which change nothing else."""

from collections import Counter
from dataclasses import replace

import pytest

from emsjax import LLM, Report, SamplingParams, UserError
from emsjax.requests.outputs import RequestOutput
from tests.tiny import checkpoint

pytest.importorskip("torch")

PROMPTS = ([7, 8, 9] * 6, [11], [5, 6] * 10, list(range(3, 40)), [7, 7, 7, 7])
OPTIONS = {"max_batch_size": 2, "max_model_len": 128, "exact": True}


@pytest.fixture(scope="module")
def llm(model_dir: str) -> LLM:
    return LLM(model_dir, trace=True, **OPTIONS)


@pytest.fixture(scope="module")
def untraced(model_dir: str) -> LLM:
    return LLM(model_dir, **OPTIONS)


def check(outputs: list[RequestOutput]) -> Report:
    """Checks that traces add up to the metrics, and their pieces to the texts."""
    report = Report(outputs)
    for output in outputs:
        traces = [completion.trace for completion in output.outputs]
        steps = [step for trace in traces for step in trace.steps]
        metrics = output.metrics
        assert sum(len(step.drafted) for step in steps) == metrics.drafted_tokens
        assert sum(step.accepted for step in steps) == metrics.accepted_tokens
        assert sum(step.emitted for step in steps) == metrics.emitted_tokens
        assert sum(step.emitted > 0 for step in steps) == metrics.target_steps
        for completion in output.outputs:
            text = "".join(completion.trace.pieces)
            assert text.startswith(completion.text)
            assert len(completion.trace.pieces) == len(completion.token_ids)
            drafted = {t for step in completion.trace.steps for t in step.drafted}
            assert completion.trace.token_texts.keys() == drafted | set(completion.token_ids)
    counts = Counter(s for o in outputs for c in o.outputs for s in c.trace.sources)
    assert report.sources == counts
    assert sum(counts.values()) == report.totals.emitted_tokens
    return report


PARAMS = {
    "greedy": SamplingParams(max_tokens=20),
    "to the limit": SamplingParams(max_tokens=9, ignore_eos=True),
    "a stop string": SamplingParams(max_tokens=40, ignore_eos=True, stop=["w7", "1 w", "w3"]),
    "samples": SamplingParams(max_tokens=12, temperature=1.0, n=3, seed=4, ignore_eos=True),
    "samples to a stop": SamplingParams(max_tokens=30, temperature=1.0, n=3, seed=1, stop="w1"),
    "a stop token": SamplingParams(max_tokens=40, stop_token_ids=list(range(3, 20))),
}


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_traces_add_up_and_change_no_text(llm: LLM, untraced: LLM, params: SamplingParams):
    outputs, without = llm.generate(PROMPTS, params), untraced.generate(PROMPTS, params)
    check(outputs)
    for ours, theirs in zip(outputs, without, strict=True):
        assert all(completion.trace is None for completion in theirs.outputs)
        assert [replace(completion, trace=None) for completion in ours.outputs] == theirs.outputs


def test_streamed_outputs_have_traces(llm: LLM):
    pieces = llm.stream(PROMPTS, SamplingParams(max_tokens=9, ignore_eos=True))
    check([piece.output for piece in pieces if piece.output is not None])


def test_without_a_tokenizer_there_are_ids():
    bare = LLM(str(checkpoint("llama")), trace=True, max_batch_size=2, max_model_len=64)
    outputs = bare.generate([[7, 8, 9] * 4], SamplingParams(max_tokens=9, ignore_eos=True))
    (completion,) = outputs[0].outputs
    assert completion.trace.pieces is None
    page = Report(outputs).html()
    for token in completion.token_ids:
        assert f'data-id="{token}">{token} </span>' in page


def test_a_report_on_outputs_without_a_trace_is_refused(untraced: LLM):
    outputs = untraced.generate([[7, 8, 9]], SamplingParams(max_tokens=3))
    with pytest.raises(UserError, match=r"no trace; make the LLM with trace=True"):
        Report(outputs)
