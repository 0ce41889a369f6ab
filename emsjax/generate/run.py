"""One run of the command line: opens what it reads and writes, and loads the model."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emsjax.cli.interrupts import interrupts_wait
from emsjax.errors import UserError
from emsjax.generate.options import Options, check
from emsjax.generate.page import page_of_run
from emsjax.generate.progress import Progress
from emsjax.generate.prompt_source import Source, open_source
from emsjax.generate.replicas.messages import Refused
from emsjax.generate.replicas.pool import Replicas, Result
from emsjax.generate.result_file import ResultFile, open_output, standard_output
from emsjax.generate.writing import Generator, Writer
from emsjax.host.compiling import when_compiling
from emsjax.host.garbage import garbage_waits
from emsjax.requests.outputs import RequestOutput
from emsjax.token_view.file import reserved

if TYPE_CHECKING:
    from emsjax.cluster.hosts import Hosts
    from emsjax.llm import LLM


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

    lead, facts = partial(_run, options, command_started), options.engine()
    return run_on_hosts(options.hosts(), facts, lead, _llm, "shows the progress")


def _run(options: Options, command_started: float, hosts: "Hosts | None") -> int:
    with (
        open_source(options) as source,
        _open_sink(options) as sink,
        _page_reserved(options),
        ExitStack() as running,
        ExitStack() as starting,
    ):
        _check_form(options, source)
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

            writer = Writer(options, generator, source, sink, progress, finished)
            if source.texts is not None and options.output is None:
                writer.write_texts()
            else:
                writer.write_records()
    return 1 if progress.errors or progress.losses else 0


def _check_form(options: Options, source: Source) -> None:
    """Checks that the results can be written in the form of the output.

    Raises:
      UserError: they cannot.
    """
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
    shared = {} if hosts is None else {"hosts": hosts}
    llm = _llm(**options.engine(), **shared)
    with when_compiling(progress.compiling):
        yield llm


def _llm(**options: Any) -> "LLM":
    # Imported here because jax and transformers take seconds to import, which `--help` and usage
    # errors should not cost.
    with interrupts_wait():
        from emsjax.llm import LLM
    return LLM(**options)
