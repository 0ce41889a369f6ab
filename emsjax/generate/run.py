"""One run of the command line: reads prompts and writes each result when it is final."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from emsjax.cli.interrupts import interrupts_wait
from emsjax.errors import UserError
from emsjax.generate.options import Options, check
from emsjax.generate.page import page_of_run
from emsjax.generate.progress import Progress
from emsjax.generate.prompt_source import Source, open_source
from emsjax.generate.replicas.messages import Refused
from emsjax.generate.replicas.pool import Replicas, Result
from emsjax.generate.result_file import ResultFile, open_output, standard_output
from emsjax.generate.text_output import OrderedTexts
from emsjax.host.compiling import when_compiling
from emsjax.host.garbage import garbage_waits
from emsjax.requests import jsonl
from emsjax.requests.outputs import CompletionOutput, Piece, RequestOutput
from emsjax.requests.prompt_line import Prompt
from emsjax.requests.sampling_params import SamplingParams
from emsjax.token_view.file import reserved

if TYPE_CHECKING:
    from emsjax.cluster.hosts import Hosts


class Generator(Protocol):
    """The part of `emsjax.llm.LLM` that the command line uses, and that `Replicas` has.

    Attributes:
      name: the model's name.
      tokenizer: the model's tokenizer; None if it has none.
    """

    name: str
    tokenizer: Any

    def request(self, prompt: Any, params: SamplingParams, request_id: str) -> Any:
        """Tokenises and checks one prompt.

        Raises:
          UserError: the prompt or its parameters do not fit the model.
        """

    def run(
        self, requests: Iterable[Any], *, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[Result]:
        """Generates, taking requests as slots become free and yielding each result when final.

        A request of None means that the next one has not arrived yet; the run asks again later.
        """


def run(options: Options, command_started: float) -> int:
    """Runs the command.

    Args:
      options: the options of the command line.
      command_started: `time.perf_counter()` when the command started.

    Returns:
      The exit status: 0, or 1 if a line was bad, a request failed or a replica ended early.

    Raises:
      UserError: the run cannot start or continue. The results written so far are whole.
      KeyboardInterrupt: the run was interrupted. The results written so far are whole, and the
        message says how to resume.
      BrokenPipeError: the reader of standard output has closed the pipe.
    """
    check(options)
    if options.several_hosts:
        return _run_on_hosts(options, command_started)
    return _run(options, command_started, None)


def _run_on_hosts(options: Options, command_started: float) -> int:
    """Runs the command as one of several hosts: the first as usual, the others work for it."""
    with interrupts_wait():
        from emsjax.cluster.command import run_on_hosts

    def follow(hosts: "Hosts") -> None:
        with interrupts_wait():
            from emsjax.llm import LLM
        LLM(**options.engine(), hosts=hosts).follow()

    lead = partial(_run, options, command_started)
    facts = options.engine()
    return run_on_hosts(options.hosts(), facts, lead, follow, "shows the progress")


def _run(options: Options, command_started: float, hosts: "Hosts | None") -> int:
    with (
        open_source(options) as source,
        _open_sink(options) as sink,
        _page_reserved(options),
        ExitStack() as running,
        ExitStack() as starting,
    ):
        if options.stream and source.texts is None:
            raise UserError(
                "--stream prints texts, but JSON lines hold whole results; leave out --stream."
            )
        for flag, count in {
            "--logprobs": options.logprobs,
            "--prompt-logprobs": options.prompt_logprobs,
        }.items():
            if count is not None and source.texts is not None and options.output is None:
                raise UserError(
                    f"{flag} cannot be shown in plain text; give --output FILE.jsonl or --output -."
                )
        starting.enter_context(garbage_waits())
        counted = Progress(
            source.total,
            command_started,
            live=not (options.stream and sys.stdout.isatty()),
            on_begun=starting.close,
        )
        generator = running.enter_context(_load(options, counted, hosts))
        counted.model = generator.name
        if options.data_parallel > 1:
            counted.model += f" in {options.data_parallel} processes"
        if hosts is not None:
            counted.model += f" on {hosts.number} hosts"
        with page_of_run(options.report, generator.name) as show, counted as progress:

            def finished(output: Result) -> None:
                if isinstance(output, Refused) or output.error is not None:
                    progress.failed()
                else:
                    progress.finished(output.metrics)
                if isinstance(output, RequestOutput):
                    show(output)

            if source.texts is not None and options.output is None:
                _write_texts(generator, source, sink, progress, finished, options)
            else:
                _write_records(generator, source, sink, progress, finished, options)
    return 1 if progress.errors or progress.losses else 0


def _open_sink(options: Options) -> ResultFile:
    if options.output in (None, "-"):
        return standard_output()
    return open_output(str(options.output), resume=options.resume, overwrite=options.overwrite)


def _page_reserved(options: Options) -> AbstractContextManager[None]:
    return reserved(Path(options.report)) if options.report else nullcontext()


@contextmanager
def _load(options: Options, progress: Progress, hosts: "Hosts | None") -> Iterator[Generator]:
    """Loads the model, in this process or in replicas, which end after the block."""
    if options.model is not None:  # the default model says itself where it comes from
        print(f"loading {options.model}", file=sys.stderr, flush=True)
    if options.data_parallel > 1:
        with Replicas(options.data_parallel, options.engine(), progress) as replicas:
            yield replicas
        return
    # Imported here because jax and transformers take seconds to import, which `--help` and usage
    # errors should not cost.
    with interrupts_wait():
        from emsjax.llm import LLM

    shared: dict[str, Any] = {} if hosts is None else {"hosts": hosts}
    llm = LLM(**options.engine(), **shared)
    with when_compiling(progress.compiling):
        yield llm


def _prompt(line: jsonl.Line, options: Options) -> Prompt:
    """Returns a line's prompt; with --chat, a text becomes a conversation."""
    if not (options.chat and isinstance(line.prompt, str)):
        return line.prompt
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return [*system, {"role": "user", "content": line.prompt}]


def _request(generator: Generator, line: jsonl.Line, options: Options, progress: Progress) -> Any:
    prompt = _prompt(line, options)
    if isinstance(prompt, str) and getattr(generator.tokenizer, "chat_template", None):
        progress.say_once(
            f"{generator.name} has a chat template, which plain text goes without; to ask it "
            "something, give --chat"
        )
    try:
        return generator.request(prompt, line.params, jsonl.key(line.id))
    except UserError as error:
        raise UserError(f"{line.where}: {error}") from error


def _write_texts(
    generator: Generator,
    source: Source,
    sink: ResultFile,
    progress: Progress,
    finished: Callable[[Result], None],
    options: Options,
) -> None:
    # All prompts are checked before the first one runs: a mistake in the last would otherwise end
    # the run late.
    lines = [line for line in source.lines if isinstance(line, jsonl.Line)]
    requests = [_request(generator, line, options, progress) for line in lines]
    show = partial(_write_text, sink, progress)
    texts = OrderedTexts(lines, source.texts or (), show)
    try:
        for piece in _pieces(generator, requests, progress, options.stream):
            ended = piece.finish_reason is not None
            texts.add(int(piece.request_id), piece.index, piece.text or "", finished=ended)
            if piece.output is not None:
                finished(piece.output)
                if piece.output.error is not None:
                    progress.report(f"error: prompt {piece.request_id}: {piece.output.error}")
    except (KeyboardInterrupt, UserError):
        texts.give_up()
        raise


def _write_text(sink: ResultFile, progress: Progress, text: str) -> None:
    _write(sink, text.encode(), progress)


def _pieces(
    generator: Any, requests: Iterable[Any], progress: Progress, stream: bool
) -> Iterator[Piece]:
    """Yields texts piece by piece, or whole ones when `stream` is false."""
    if stream:
        yield from generator.run_streaming(requests, on_progress=progress.emitted)
        return
    for output in generator.run(requests, on_progress=progress.emitted):
        if isinstance(output, Refused):
            raise UserError(f"prompt {output.request_id}: {output.error}")
        *others, last = output.outputs
        for each in others:
            yield _whole(output.request_id, each)
        yield replace(_whole(output.request_id, last), output=output)


def _whole(request_id: str, completion: CompletionOutput) -> Piece:
    """The whole text of an output as one piece."""
    parts = completion.index, completion.text, completion.token_ids, completion.finish_reason
    return Piece(request_id, *parts)


def _write_records(
    generator: Generator,
    source: Source,
    sink: ResultFile,
    progress: Progress,
    finished: Callable[[Result], None],
    options: Options,
) -> None:
    """Writes one record per line, each when it is final."""
    # By request id: the line, and the digest of its prompt.
    running: dict[str, tuple[jsonl.Line, str]] = {}

    def failed(line: jsonl.Line | jsonl.BadLine, error: str) -> None:
        _write(sink, jsonl.encode(jsonl.failure(line, error)), progress)

    def requests() -> Iterator[Any]:
        for line in source.lines:
            if line is None:
                yield None
            elif jsonl.key(line.id) in sink.finished:
                _check_unchanged(line, sink, options)
                progress.skipped()
            elif isinstance(line, jsonl.BadLine):
                failed(line, line.error)
                progress.failed()
            else:
                try:
                    request = _request(generator, line, options, progress)
                except UserError as error:
                    failed(line, str(error))
                    progress.failed()
                else:
                    digest = jsonl.digest(_prompt(line, options))
                    running[jsonl.key(line.id)] = line, digest
                    yield request

    try:
        for output in generator.run(requests(), on_progress=progress.emitted):
            line, digest = running.pop(output.request_id)
            if isinstance(output, Refused) or output.error is not None:
                failed(line, str(UserError(f"{line.where}: {output.error}")))
            else:
                _write(sink, jsonl.encode(jsonl.result(output, digest)), progress)
            finished(output)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_how_to_resume(options, sink)) from stop


def _check_unchanged(line: jsonl.Line | jsonl.BadLine, sink: ResultFile, options: Options) -> None:
    """Checks that a finished result belongs to the prompt that has its id now."""
    then = sink.finished[jsonl.key(line.id)]
    if isinstance(line, jsonl.BadLine) or jsonl.digest(_prompt(line, options)) != then:
        raise UserError(
            f"{sink.name!r} holds a result for the id {line.id!r}, which now has another prompt; "
            "give the prompts and ids of the run that --resume continues, or another --output."
        )


def _write(sink: ResultFile, line: bytes, progress: Progress) -> None:
    """Writes a line, hiding a progress bar on the same terminal meanwhile."""
    on_terminal = sink.name == "-" and sys.stdout.isatty()
    with progress.paused() if on_terminal else nullcontext():
        sink.write(line)


def _how_to_resume(options: Options, sink: ResultFile) -> str:
    if options.output in (None, "-"):
        return ""
    if sink.empty:
        return "no result was finished."
    change = "--resume instead of --overwrite" if options.overwrite else "--resume"
    return f"finished results are in {options.output!r}; repeat the command with {change} to go on."
