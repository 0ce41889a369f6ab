"""One run of the command line: prompts in, results out as each is final."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from emsjax.cli.interrupts import interrupts_wait
from emsjax.errors import UserError
from emsjax.generate.options import Options, check
from emsjax.generate.page import page_of_run
from emsjax.generate.progress import Report
from emsjax.generate.prompt_source import Source, open_source
from emsjax.generate.result_file import ResultFile, open_output, standard_output
from emsjax.generate.text_output import OrderedTexts
from emsjax.requests import jsonl
from emsjax.requests.outputs import CompletionOutput, Piece, RequestOutput
from emsjax.requests.sampling_params import SamplingParams


class Engine(Protocol):
    """What the command line needs of `emsjax.llm.LLM`.

    Attributes:
      name: of the model.
    """

    name: str

    def request(self, prompt: Any, params: SamplingParams, request_id: str) -> Any:
        """Tokenise and check one prompt; raises `UserError`."""

    def run(
        self, requests: Iterable[Any], *, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[RequestOutput]:
        """Generate, taking requests as slots free up and yielding each as it is final.

        A request that is None says that none is there yet; it is asked for again later.
        """

    def run_streaming(
        self, requests: Iterable[Any], *, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[Piece]:
        """The same, with each piece of text as soon as it is final."""


def run(options: Options, command_started: float) -> int:
    """Do what the options ask for.

    Args:
      options: the command line.
      command_started: `time.perf_counter()` when the command started.

    Returns:
      The exit status: 0, or 1 where some line was bad.

    Raises:
      UserError: the run cannot start or go on; its results so far are whole.
      KeyboardInterrupt: likewise, with a word on how to resume.
      BrokenPipeError: the reader of standard output has left.
    """
    check(options)
    with open_source(options) as source, _open_sink(options) as sink:
        if options.stream and source.texts is None:
            raise UserError(
                "--stream is for texts, and JSON lines hold whole results; leave it out."
            )
        if options.logprobs is not None and source.texts is not None and options.output is None:
            raise UserError("--logprobs has no place in a text; give --output FILE.jsonl, or - .")
        engine = _load(options)
        live = not (options.stream and sys.stdout.isatty())
        progress = Report(source.total, command_started, live=live)
        with page_of_run(options.report, engine.name) as show, progress as report:

            def finished(output: RequestOutput) -> None:
                report.finished(output.metrics)
                show(output)

            if source.texts is not None and options.output is None:
                _write_texts(engine, source, sink, report, finished, options)
            else:
                _write_records(engine, source, sink, report, finished, options)
    return 1 if report.errors else 0


def _open_sink(options: Options) -> ResultFile:
    if options.output in (None, "-"):
        return standard_output()
    return open_output(str(options.output), resume=options.resume, overwrite=options.overwrite)


def _load(options: Options) -> Engine:
    # Here and not above: jax and transformers take seconds to import, which a usage error or
    # `--help` should not cost.
    with interrupts_wait():
        from emsjax.llm import LLM

    return LLM(**options.engine())


def _prompt(line: jsonl.Line, chat: bool) -> jsonl.Prompt:
    if chat and isinstance(line.prompt, str):
        return [{"role": "user", "content": line.prompt}]
    return line.prompt


def _request(engine: Engine, line: jsonl.Line, chat: bool) -> Any:
    try:
        return engine.request(_prompt(line, chat), line.params, jsonl.key(line.id))
    except UserError as error:
        raise UserError(f"{line.where}: {error}") from error


def _write_texts(
    engine: Engine,
    source: Source,
    sink: ResultFile,
    report: Report,
    finished: Callable[[RequestOutput], None],
    options: Options,
) -> None:
    # All are checked before any is run: a mistake in the last prompt should not cost the first.
    lines = [line for line in source.lines if isinstance(line, jsonl.Line)]
    requests = [_request(engine, line, options.chat) for line in lines]
    show = partial(_write_text, sink, report)
    texts = OrderedTexts(lines, source.texts or (), show)
    try:
        for piece in _pieces(engine, requests, report, options.stream):
            ended = piece.finish_reason is not None
            texts.add(int(piece.request_id), piece.index, piece.text or "", finished=ended)
            if piece.output is not None:
                finished(piece.output)
    except (KeyboardInterrupt, UserError):
        texts.give_up()
        raise


def _write_text(sink: ResultFile, report: Report, text: str) -> None:
    _write(sink, text.encode(), report)


def _pieces(
    engine: Engine, requests: Iterable[Any], report: Report, stream: bool
) -> Iterator[Piece]:
    """Texts bit by bit, or each whole once its request is finished."""
    report.starting()
    if stream:
        yield from engine.run_streaming(requests, on_progress=report.emitted)
        return
    for output in engine.run(requests, on_progress=report.emitted):
        *others, last = output.outputs
        for each in others:
            yield _whole(output.request_id, each)
        yield replace(_whole(output.request_id, last), output=output)


def _whole(request_id: str, completion: CompletionOutput) -> Piece:
    parts = completion.index, completion.text, completion.token_ids, completion.finish_reason
    return Piece(request_id, *parts)


def _write_records(
    engine: Engine,
    source: Source,
    sink: ResultFile,
    report: Report,
    finished: Callable[[RequestOutput], None],
    options: Options,
) -> None:
    """One record a line, as each is final."""
    running: dict[str, str] = {}  # digests of prompts

    def failed(line: jsonl.Line | jsonl.BadLine, error: str) -> None:
        _write(sink, jsonl.encode(jsonl.failure(line, error)), report)
        report.failed()

    def requests() -> Iterator[Any]:
        for line in source.lines:
            if line is None:
                yield None
            elif jsonl.key(line.id) in sink.finished:
                _check_unchanged(line, sink, options.chat)
                report.skipped()
            elif isinstance(line, jsonl.BadLine):
                failed(line, line.error)
            else:
                try:
                    request = _request(engine, line, options.chat)
                except UserError as error:
                    failed(line, str(error))
                else:
                    running[jsonl.key(line.id)] = jsonl.digest(_prompt(line, options.chat))
                    report.starting()
                    yield request

    try:
        for output in engine.run(requests(), on_progress=report.emitted):
            record = jsonl.result(output, running.pop(output.request_id))
            _write(sink, jsonl.encode(record), report)
            finished(output)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_how_to_resume(options, sink)) from stop


def _check_unchanged(line: jsonl.Line | jsonl.BadLine, sink: ResultFile, chat: bool) -> None:
    """Refuse to take the result of one prompt for that of another."""
    then = sink.finished[jsonl.key(line.id)]
    if isinstance(line, jsonl.BadLine) or jsonl.digest(_prompt(line, chat)) != then:
        raise UserError(
            f"{sink.name!r} holds a result with the id {line.id!r} for another prompt than the one "
            "it has now; --resume needs the prompts and ids of the run it continues: "
            "give those, or another --output."
        )


def _write(sink: ResultFile, line: bytes, report: Report) -> None:
    """Write a line, out of the way of a progress bar on the same terminal."""
    on_terminal = sink.name == "-" and sys.stdout.isatty()
    with report.paused() if on_terminal else nullcontext():
        sink.write(line)


def _how_to_resume(options: Options, sink: ResultFile) -> str:
    if options.output in (None, "-"):
        return ""
    if sink.empty:
        return "no result was final yet."
    change = "--resume instead of --overwrite" if options.overwrite else "--resume"
    return f"the results so far are in {options.output!r}; the same command with {change} goes on."
