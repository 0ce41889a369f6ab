"""The options of the command line, and the checks that they fit together."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from emsjax.cli.hosts_options import HostsOptions
from emsjax.cli.model_options import check_model_options, check_not_empty
from emsjax.errors import UserError, reason
from emsjax.limits import MAX_REPLICAS
from emsjax.requests.prompt_line import check_text
from emsjax.requests.sampling_params import SamplingParams
from emsjax.token_view.file import check_page

# Sampling parameters that contradict the defaults of others, with values that they go with.
_COMPANIONS: dict[str, dict[str, Any]] = {
    "n": {"temperature": 1.0},
    "adapt_temperature": {"temperature": 1.0},
    "min_tokens": {"max_tokens": 2**31 - 1},
}


@dataclass(frozen=True)
class Options(HostsOptions):
    """The options of `python -m emsjax.generate`, one field per option."""

    prompt: tuple[str, ...] = ()
    input: str | None = None
    output: str | None = None
    chat: bool = False
    system: str | None = None
    data_parallel: int = 1
    max_tokens: int = 128
    min_tokens: int | None = None
    temperature: float = 0.0
    adapt_temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    json_schema: str | None = None
    ignore_eos: bool = False
    resume: bool = False
    overwrite: bool = False
    stream: bool = False
    report: str | None = None

    def sampling(self) -> dict[str, Any]:
        """Returns the sampling parameters by name, as defaults for every prompt."""
        # The seed is left out: each prompt derives its own from the run's seed and its id.
        names = {field.name for field in fields(SamplingParams)} - {"seed"}
        given = {name: value for name, value in vars(self).items() if name in names}
        if self.json_schema is not None:
            given["structured_outputs"] = {"json": _read_schema(self.json_schema)}
        return given

    def engine(self) -> dict[str, Any]:
        """Returns the arguments for `emsjax.llm.LLM`, leaving out what is as by default."""
        return super().engine() | ({} if self.report is None else {"trace": True})


def _read_schema(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else reason(error)
        raise UserError(
            f"--json-schema {file} cannot be read ({why}); name a file with a schema."
        ) from error


def check(options: Options) -> None:
    """Checks the options against each other before anything is loaded.

    Raises:
      UserError: an option has an impossible value, or two options contradict each other.
    """
    check_model_options(options)
    for name in ("input", "output", "report", "json_schema"):
        check_not_empty(name, getattr(options, name))
    _check_replicas(options)
    _check_files(options)
    _check_sampling(options)


def _check_replicas(options: Options) -> None:
    replicas = options.data_parallel
    if replicas < 1:
        raise UserError(f"--data-parallel {replicas} is too small; give 1 or more.")
    if replicas > MAX_REPLICAS:
        raise UserError(
            f"--data-parallel {replicas} is too large; give as many as there are devices, "
            f"{MAX_REPLICAS} at most."
        )
    if replicas > 1 and options.tensor_parallel == "auto":
        raise UserError(
            "--tensor-parallel auto takes all devices that the model needs, and --data-parallel "
            "divides them; give a number with --tensor-parallel."
        )
    if options.several_hosts and replicas > 1:
        raise UserError(
            "--data-parallel starts copies of the model on one host, and several hosts share one "
            "copy; leave out --data-parallel, or give each host prompts of its own."
        )
    if options.stream and replicas > 1:
        raise UserError(
            "--stream shows texts while one process generates them; leave out --stream or "
            "--data-parallel."
        )


def _check_sampling(options: Options) -> None:
    """Checks the sampling parameters as far as they are known before the input is read."""
    given = options.sampling()
    if options.prompt:
        SamplingParams(**given)
        return
    # A line of the input may override any parameter, so each is checked alone here, with others
    # that it goes with; `jsonl.read` checks the combination.
    for name, value in given.items():
        SamplingParams(**_COMPANIONS.get(name, {}) | {name: value})


def _check_files(options: Options) -> None:
    to_file = options.output not in (None, "-")
    if options.stream and (options.output is not None or options.input is not None):
        raise UserError(
            "--stream prints texts, but JSON lines hold whole results; leave out --stream, or "
            "--input and --output."
        )
    if options.prompt and options.input is not None:
        raise UserError("--prompt and --input contradict each other; give one of them.")
    if options.system is not None and not options.chat:
        raise UserError("--system is a message of a conversation; give --chat, too.")
    if options.system is not None:
        check_text("--system", options.system)
    if options.resume and not to_file:
        raise UserError("--resume needs a file to continue; give --output FILE.")
    if options.overwrite and not to_file:
        raise UserError("--overwrite needs a file to replace; give --output FILE.")
    if options.resume and options.overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them.")
    if to_file and options.input is not None and _same_file(options.input, str(options.output)):
        raise UserError(
            f"--input and --output are the same file, {options.input!r}; give another --output."
        )
    _check_report(options)


def _check_report(options: Options) -> None:
    if options.report is None:
        return
    if options.report == "-":
        raise UserError("--report - is not supported; name a file, such as report.html.")
    check_page(Path(options.report))
    for flag, file in (("--input", options.input), ("--output", options.output)):
        if file is not None and _same_file(file, options.report):
            raise UserError(
                f"{flag} and --report are the same file, {file!r}; give another --report."
            )
    if Path(options.report).suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"--report writes an HTML page, but {options.report!r} does not end in .html; name a "
            "page, such as report.html."
        )


def _same_file(left: str, right: str) -> bool:
    try:
        return os.path.samefile(left, right)
    except OSError:  # one of them does not exist
        return os.path.realpath(left) == os.path.realpath(right)
