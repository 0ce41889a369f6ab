"""Runs the benchmark, from its settings to its files."""

import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emsjax.bench.cells import Cell
from emsjax.bench.contenders import FIXED, SIMULATED, Spec, drafter_of, start
from emsjax.bench.other_work import OtherWork
from emsjax.bench.parts import watched
from emsjax.bench.peer import VLLM
from emsjax.bench.peers import peers_of
from emsjax.bench.plots import draw
from emsjax.bench.prompts import Dataset, GivenPrompts, MadeUpPrompts, read_datasets
from emsjax.bench.recording import Recorder
from emsjax.bench.records import Record, check_alike, merge, read_records, records_of, run_facts
from emsjax.bench.settings import Settings
from emsjax.bench.simulated import write_acceptance
from emsjax.bench.sweep import run_sweep
from emsjax.bench.tables import report
from emsjax.bench.target import Target, random_target, real_target
from emsjax.bench.vllm_peer import vllm_version
from emsjax.cli.command import command_line
from emsjax.errors import UserError
from emsjax.host.cache import use_compile_cache
from emsjax.host.files import replace_text
from emsjax.host.json_text import to_json
from emsjax.host.locks import alone_in
from emsjax.loading.drafter import shipped_draft


def run(settings: Settings) -> None:
    """Measures all contenders, and writes the results after each batch size.

    Raises:
      UserError: the model or the prompts cannot be loaded, or the output cannot be written.
    """
    use_compile_cache()
    _make(settings.output)
    refusal = f"another process is writing to {settings.output}; name another --output"
    with alone_in(settings.output, refusal):
        _run(settings)


def _run(settings: Settings) -> None:
    files = _Files(settings.output, settings.append)
    if settings.trace is not None:
        _make(settings.trace)
    if not _can_plot():
        say("there will be no plots: they need pip install 'emsjax[plot]'")
    vllm = {} if settings.vllm_python is None else {VLLM: vllm_version(settings.vllm_python)}
    target = _target(settings)
    settings = _for_model(settings, target)
    datasets = _datasets(settings, target)
    facts = run_facts(settings.tensor_parallel) | {
        "model": target.name,
        "dtype": str(target.model.dtype),
        "quantize": settings.quantize,
        "kv_dtype": settings.kv_dtype,
        "simulated": settings.simulated,
        "texts": settings.texts(),
        "draft_model": settings.draft_model,
        "draft_quantize": settings.draft_quantize,
        "jobs": settings.jobs or None,
        "command": command_line("bench"),
    }
    facts["versions"] |= vllm
    files.check(facts)
    # Bad prompts and draft models of another target must fail now, not after hours of measuring.
    for dataset, size in itertools.product(datasets.values(), settings.batch_sizes):
        dataset.take(settings.prompts, size)
    for spec in settings.specs():
        drafter_of(spec, target)
    others = OtherWork()

    def write(cells: list[Cell]) -> None:
        files.add(records_of(cells, facts | {"other_cpus": others.since_last_call()}))

    with peers_of(settings.compare, target, settings.vllm_python) as peers:
        run_sweep(settings.sweep(), target, datasets, write, say, peers)
    for line in files.summary():
        say(line)


def record_acceptance(settings: Settings) -> None:
    """Decodes all prompts and writes how much of each draft was accepted.

    Raises:
      UserError: as for `run`.
    """
    use_compile_cache()
    record = settings.record
    assert record is not None
    _make(record.parent)
    if record.is_dir():
        raise UserError(f"--record {str(record)!r} is a directory; name a file")
    target = _target(settings)
    settings = _for_model(settings, target)
    size, drafter = settings.batch_sizes[0], settings.recorded().drafter
    recorder = Recorder()
    datasets = _datasets(settings, target)
    chosen = [dataset.take(settings.prompts, size) for dataset in datasets.values()]
    prompts = list(itertools.chain(*chosen))
    longest = max(map(len, prompts)) + settings.max_tokens
    plain = start(Spec(FIXED, drafter), target, size, min(longest, target.max_model_len))
    stepped = watched(plain, target, recorder.see, chains=True)
    done = 0
    for jobs in target.batches(prompts, size, settings.max_tokens):
        stepped.decode(plain.prefill(jobs)[0], jobs)
        done += len(jobs)
        say(f"{done} of {len(prompts)} prompts")
    write_acceptance(recorder.samples, record)
    say(f"wrote {record}: use it with --simulate-acceptance {record}")


def say(line: str) -> None:
    """Prints a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def _target(settings: Settings) -> Target:
    forced = settings.forced()
    if settings.config is not None and forced is not None:
        kinds = settings.quantize, settings.kv_dtype
        return random_target(settings.config, settings.dtype, forced, *kinds)
    if settings.model is not None:  # the default model says itself where it comes from
        say(f"loading {settings.model}")
    return real_target(
        settings.model,
        settings.dtype,
        quantize=settings.quantize,
        kv_dtype=settings.kv_dtype,
        tensor_parallel=settings.tensor_parallel,
        draft_model=settings.draft_model,
        draft_quantize=settings.draft_quantize,
        ignore_eos=settings.ignore_eos,
    )


def _for_model(settings: Settings, target: Target) -> Settings:
    """Returns the settings with the model's default drafter if none is named."""
    loaded = target.loaded
    return settings.for_model(loaded is not None and shipped_draft(loaded) is not None)


def _can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _datasets(settings: Settings, target: Target) -> Mapping[str, Dataset]:
    if target.read is None:
        if settings.prompt_tokens >= target.max_model_len:
            raise UserError(
                f"--prompt-tokens {settings.prompt_tokens} leaves no room for a text: "
                f"{target.name} takes {target.max_model_len} tokens, prompt and text together; "
                "give fewer"
            )
        return {SIMULATED: MadeUpPrompts(settings.prompt_tokens, target.model.vocab_size)}
    found = read_datasets(settings.inputs, settings.datasets)
    return {
        name: GivenPrompts(prompts, target.read, settings.chat) for name, prompts in found.items()
    }


def _make(directory: Path) -> None:
    """Makes a directory and writes a file in it, before hours are spent on measuring."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise UserError(
            f"directory {str(directory)!r} cannot be written ({error.strerror}); name another"
        ) from error


class _Files:
    """The files in the output directory."""

    def __init__(self, directory: Path, append: bool):
        self._directory = directory
        self._results = directory / "results.json"
        self._records: list[Record] = []
        if self._results.is_file() and not append:
            raise UserError(
                f"{self._results} exists already; add to it with --append, or name another --output"
            )
        if self._results.is_file():
            self._records = read_records(self._results)

    def check(self, facts: Mapping[str, Any]) -> None:
        """Checks before measuring that new records may be added, see `check_alike`."""
        check_alike(self._records, facts)

    def add(self, records: Sequence[Record]) -> None:
        """Adds records and writes everything measured so far."""
        self._records = merge(self._records, records)
        try:
            replace_text(self._results, to_json(self._records, indent=1) + "\n")
            replace_text(self._directory / "results.md", report(self._records))
        except OSError as error:
            raise UserError(
                f"{self._results} cannot be written ({error.strerror}); free space there, or name "
                "another --output"
            ) from error

    def summary(self) -> list[str]:
        """Draws the plots, and returns a line for each written file."""
        written = [self._results, self._directory / "results.md"]
        if not _can_plot():
            return [*map(_wrote, written)]
        try:
            return [*map(_wrote, written), *map(_wrote, draw(self._records, self._directory))]
        except UserError as error:
            return [*map(_wrote, written), f"no plots: {error}"]


def _wrote(file: Path) -> str:
    return f"wrote {file}"
