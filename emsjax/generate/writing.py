"""Writes what is generated: texts in the order of the prompts, or a record for each line."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

from emsjax.errors import UserError
from emsjax.generate.options import Options
from emsjax.generate.progress import Progress
from emsjax.generate.prompt_source import Source
from emsjax.generate.replicas.messages import Refused
from emsjax.generate.replicas.pool import Result
from emsjax.generate.result_file import ResultFile
from emsjax.generate.text_output import OrderedTexts
from emsjax.requests import jsonl
from emsjax.requests.outputs import CompletionOutput, Piece
from emsjax.requests.prompt_line import Prompt
from emsjax.requests.sampling_params import SamplingParams


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


@dataclass(frozen=True)
class Writer:
    """Generates for all prompts of a run, and writes each result when it is final.

    Attributes:
      options: the options of the command line.
      generator: generates.
      source: the prompts.
      sink: where results are written.
      progress: what is reported meanwhile.
      finished: called with each result.
    """

    options: Options
    generator: Generator
    source: Source
    sink: ResultFile
    progress: Progress
    finished: Callable[[Result], None]

    def write_texts(self) -> None:
        """Writes plain texts, with headings if there are several prompts.

        Raises:
          UserError: a prompt is bad, before anything is generated; or the run cannot continue.
          KeyboardInterrupt: the run was interrupted.
        """
        # All prompts are checked before the first one runs: a mistake in the last would otherwise
        # end the run late.
        lines = [line for line in self.source.lines if isinstance(line, jsonl.Line)]
        requests = [self._request(line) for line in lines]
        texts = OrderedTexts(
            lines, self.source.texts or (), lambda text: self._write(text.encode())
        )
        try:
            for piece in self._pieces(requests):
                ended = piece.finish_reason is not None
                texts.add(int(piece.request_id), piece.index, piece.text or "", finished=ended)
                if piece.output is not None:
                    self.finished(piece.output)
                    if piece.output.error is not None:
                        self.progress.report(
                            f"error: prompt {piece.request_id}: {piece.output.error}"
                        )
        except (KeyboardInterrupt, UserError):
            texts.give_up()
            raise

    def write_records(self) -> None:
        """Writes one record per line, each when it is final.

        Raises:
          UserError: the run cannot continue.
          KeyboardInterrupt: the run was interrupted; the message says how to resume.
        """
        # By request id: the line, and the digest of its prompt.
        running: dict[str, tuple[jsonl.Line, str]] = {}
        try:
            requests = self._unfinished(running)
            for output in self.generator.run(requests, on_progress=self.progress.emitted):
                line, digest = running.pop(output.request_id)
                if isinstance(output, Refused) or output.error is not None:
                    self._failed(line, str(UserError(f"{line.where}: {output.error}")))
                else:
                    self._write(jsonl.encode(jsonl.result(output, digest)))
                self.finished(output)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(self._how_to_resume()) from stop

    def _unfinished(self, running: dict[str, tuple[jsonl.Line, str]]) -> Iterator[Any]:
        """Yields the requests of all lines that have no result yet, and adds them to `running`."""
        for line in self.source.lines:
            if line is None:
                yield None
            elif jsonl.key(line.id) in self.sink.finished:
                self._check_unchanged(line)
                self.progress.skipped()
            elif isinstance(line, jsonl.BadLine):
                self._failed(line, line.error)
                self.progress.failed()
            else:
                try:
                    request = self._request(line)
                except UserError as error:
                    self._failed(line, str(error))
                    self.progress.failed()
                else:
                    running[jsonl.key(line.id)] = line, jsonl.digest(self._prompt(line))
                    yield request

    def _prompt(self, line: jsonl.Line) -> Prompt:
        """Returns a line's prompt; with --chat, a text becomes a conversation."""
        if not (self.options.chat and isinstance(line.prompt, str)):
            return line.prompt
        told = self.options.system
        system = [] if told is None else [{"role": "system", "content": told}]
        return [*system, {"role": "user", "content": line.prompt}]

    def _request(self, line: jsonl.Line) -> Any:
        prompt = self._prompt(line)
        if isinstance(prompt, str) and getattr(self.generator.tokenizer, "chat_template", None):
            self.progress.say_once(
                f"{self.generator.name} has a chat template, which plain text goes without; to ask "
                "it something, give --chat"
            )
        try:
            return self.generator.request(prompt, line.params, jsonl.key(line.id))
        except UserError as error:
            raise UserError(f"{line.where}: {error}") from error

    def _pieces(self, requests: Iterable[Any]) -> Iterator[Piece]:
        """Yields texts piece by piece, or whole ones without --stream."""
        generator: Any = self.generator
        if self.options.stream:
            yield from generator.run_streaming(requests, on_progress=self.progress.emitted)
            return
        for output in generator.run(requests, on_progress=self.progress.emitted):
            if isinstance(output, Refused):
                raise UserError(f"prompt {output.request_id}: {output.error}")
            *others, last = output.outputs
            for each in others:
                yield _whole(output.request_id, each)
            yield replace(_whole(output.request_id, last), output=output)

    def _check_unchanged(self, line: jsonl.Line | jsonl.BadLine) -> None:
        """Checks that a finished result belongs to the prompt that has its id now."""
        then = self.sink.finished[jsonl.key(line.id)]
        if isinstance(line, jsonl.BadLine) or jsonl.digest(self._prompt(line)) != then:
            raise UserError(
                f"{self.sink.name!r} holds a result for the id {line.id!r}, which now has another "
                "prompt; give the prompts and ids of the run that --resume continues, or another "
                "--output."
            )

    def _failed(self, line: jsonl.Line | jsonl.BadLine, error: str) -> None:
        self._write(jsonl.encode(jsonl.failure(line, error)))

    def _write(self, line: bytes) -> None:
        """Writes a line, hiding a progress bar on the same terminal meanwhile."""
        on_terminal = self.sink.name == "-" and sys.stdout.isatty()
        with self.progress.paused() if on_terminal else nullcontext():
            self.sink.write(line)

    def _how_to_resume(self) -> str:
        if self.options.output in (None, "-"):
            return ""
        if self.sink.empty:
            return "no result was finished."
        change = "--resume instead of --overwrite" if self.options.overwrite else "--resume"
        return (
            f"finished results are in {self.options.output!r}; repeat the command with {change} to "
            "go on."
        )


def _whole(request_id: str, completion: CompletionOutput) -> Piece:
    """The whole text of an output as one piece."""
    parts = completion.index, completion.text, completion.token_ids, completion.finish_reason
    return Piece(request_id, *parts)
