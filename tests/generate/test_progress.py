import io

import pytest

from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.programs import PROGRAMS
from emsjax.generate.progress import Progress
from emsjax.host.compiling import KERNEL

METRICS = RequestMetrics(
    target_steps=500,
    drafted_tokens=12,
    accepted_tokens=7,
    emitted_tokens=1200,
    drafted_by_position=(8, 4, 0),
    accepted_by_position=(6, 1, 0),
    time_to_first_token=0.25,
)


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def _progress(total=None, stream=None):
    clock = Clock()
    return Progress(total, clock.now - 3, stream or io.StringIO(), clock), clock


def test_the_summary_has_every_statistic():
    progress, clock = _progress()
    with progress:
        clock.now += 2
        progress.emitted(1)
        progress.finished(METRICS)
        progress.skipped()
        progress.failed()
        progress.failed()
        clock.now += 8
    assert progress.summary() == [
        "1 prompt, 1,200 tokens in 10.0 s: 120.0 tokens/s",
        "1 prompt already finished by an earlier run",
        "2 bad lines: see the error records in the output",
        "first token 5.00 s after the start, including loading and compiling",
        "2.40 tokens per target step (500 steps)",
        "acceptance by draft position: 1: 75%  2: 25%  3: -",
        "time to first token: mean 0.25 s, maximum 0.25 s",
    ]


def test_a_run_of_nothing_has_a_short_summary():
    progress, _ = _progress()
    assert progress.summary() == ["0 prompts, 0 tokens in 0.0 s: 0.0 tokens/s"]


def test_plain_decoding_has_no_acceptance_line():
    progress, _ = _progress()
    progress.finished(RequestMetrics(2, 0, 0, 2, (), (), 0.1))
    assert not any("acceptance" in line for line in progress.summary())


def test_a_log_gets_a_line_every_five_seconds_at_most():
    stream = io.StringIO()
    progress, clock = _progress(total=40, stream=stream)
    with progress:
        for _ in range(44):
            clock.now += 0.25
            progress.emitted(10)
        before_summary = stream.getvalue()
    assert before_summary.splitlines() == [
        "0 of 40 done, 200 tokens, 40.0 tokens/s",
        "0 of 40 done, 400 tokens, 40.0 tokens/s",
    ]


@pytest.mark.parametrize("news", ["emitted", "finished", "failed", "skipped"])
def test_the_first_news_of_a_prompt_ends_the_start(news):
    begun = []
    progress = Progress(None, 0.0, io.StringIO(), Clock(), on_begun=lambda: begun.append(1))
    with progress:
        assert not begun
        for _ in range(2):
            getattr(progress, news)(*{"emitted": [0], "finished": [METRICS]}.get(news, []))
    assert begun == [1]


def test_an_unknown_total_is_left_out():
    stream = io.StringIO()
    progress, clock = _progress(stream=stream)
    clock.now += 5
    progress.finished(METRICS)
    assert stream.getvalue() == "1 prompt done, 0 tokens, 0.0 tokens/s\n"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_line_is_said_once(kind):
    stream = kind()
    progress, _ = _progress(stream=stream)
    with progress:
        for program in (KERNEL, "decode", "decode_sampled", "decode", "admit_job", "_release"):
            progress.compiling(program)
        progress.say_once("a hint")
        progress.say_once("a hint")
    assert stream.getvalue().count("a hint") == 1
    said = " ".join(stream.getvalue().split())
    kernel = "the kernels for this processor"
    for what in (*PROGRAMS.values(), kernel, "a part of the run"):
        assert said.count(f"compiling {what}, which takes a while") == 1


@pytest.mark.parametrize("total", [None, 4])
def test_a_terminal_gets_a_bar_that_can_be_hidden(total):
    stream = Terminal()
    progress, _ = _progress(total, stream)
    with progress:
        progress.emitted(7)
        progress.finished(METRICS)
        with progress.paused():
            held = stream.getvalue()
            progress.emitted(1)
            assert stream.getvalue() == held
    assert ("prompts 1/4 ·" if total else "prompts 1 ·") in stream.getvalue()
    assert stream.getvalue().endswith("maximum 0.25 s\n")


@pytest.mark.parametrize(
    ("error", "summarised"),
    [(KeyboardInterrupt, True), (BrokenPipeError, False), (ValueError, False)],
)
def test_an_interrupt_gets_a_summary_and_a_failure_does_not(error, summarised):
    stream = io.StringIO()
    progress, _ = _progress(stream=stream)
    with pytest.raises(error), progress:
        raise error
    assert bool(stream.getvalue()) == summarised
