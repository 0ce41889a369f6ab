"""The command line of training: `python -m emsjax.train --input PROMPTS --output DIRECTORY`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emsjax.cli import command
from emsjax.cli import model_options as shared
from emsjax.errors import UserError
from emsjax.limits import DRAFT_KINDS, HIDDEN_TRANSFER, JAKIRO, OWN_LAYERS, RECURRENT
from emsjax.train import options

if TYPE_CHECKING:
    from emsjax.train.fit import Fitting, Progress

_app = command.new_app()
_RATES = {RECURRENT: 2e-3, JAKIRO: 1e-3, OWN_LAYERS: 5e-4, HIDDEN_TRANSFER: 5e-4}
# Of a draft that was trained before.
_RATE_FURTHER = 5e-4
_VOCABULARY = 8192
# The kinds that need no updates.
_SOLVED = (OWN_LAYERS, HIDDEN_TRANSFER)


@_app.command()
def train(
    output: options.Output,
    inputs: options.Inputs = None,
    own_prompts: options.OwnPrompts = 0,
    model: shared.Model = None,
    dtype: shared.Dtype = "auto",
    kind: options.Kind = RECURRENT,
    start_from: options.StartFrom = None,
    outputs: options.Outputs = 3,
    max_tokens: options.MaxTokens = 160,
    longest_prompt: options.LongestPrompt = 512,
    batch_size: options.BatchSize = 48,
    ignore_eos: options.IgnoreEos = False,
    layers: options.Layers = None,
    width: options.Width = None,
    vocabulary: options.Vocabulary = None,
    held_out: options.HeldOut = 0.05,
    steps: options.Steps = None,
    rows: options.Rows = 8,
    unroll: options.Unroll = 4,
    learning_rate: options.LearningRate = None,
    evaluate_every: options.EvaluateEvery = 200,
    seed: options.Seed = 0,
    tensor_parallel: options.TensorParallel = None,
) -> None:
    """Train a draft for a model on text that the model itself writes.

    Use the result with --draft-model OUTPUT/draft.
    """
    _check(kind, steps, tensor_parallel)
    if start_from is not None:
        _check_sizes(layers=layers, width=width, vocabulary=vocabulary)
    from emsjax.host.cache import use_compile_cache
    from emsjax.loading.progress import progress_bar
    from emsjax.train.record import Writing
    from emsjax.train.run import train as run
    from emsjax.train.settings import Training

    use_compile_cache()
    training = Training(
        model=model,
        inputs=tuple(inputs or ()),
        output=output,
        own_prompts=own_prompts,
        dtype=dtype,
        longest_prompt=longest_prompt,
        writing=Writing(outputs, max_tokens, batch_size=batch_size, ignore_eos=ignore_eos),
        kind=kind,
        start_from=start_from,
        layers=2 if layers is None and kind in (RECURRENT, OWN_LAYERS) else layers,
        width=width,
        vocabulary=vocabulary or _VOCABULARY,
        held_out=held_out,
        fitting=_fitting(
            kind,
            steps,
            learning_rate,
            start_from,
            rows=rows,
            width=max_tokens,
            unroll=unroll,
            evaluate_every=evaluate_every,
            seed=seed,
        ),
    )
    if model is not None:  # the default model says itself where it comes from
        print(f"loading {model}", file=sys.stderr)
    try:
        with progress_bar("writing texts") as progress:
            draft = run(training, progress, _say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command to continue") from None
    print(f"wrote {draft}; use it with --draft-model {draft}", file=sys.stderr)


def _check(kind: str, steps: int | None, tensor_parallel: int | None) -> None:
    if tensor_parallel not in (None, 1):
        raise UserError(
            "a draft is trained with the model on one device; leave out --tensor-parallel, which "
            "the commands that use the draft have"
        )
    if kind not in DRAFT_KINDS:
        raise UserError(f"kind {kind!r} is unknown; choose from {', '.join(DRAFT_KINDS)}")
    if steps == 0 and kind not in _SOLVED:
        raise UserError(f"steps is 0, but a {kind} draft learns by updates only; give more --steps")


def _check_sizes(**sizes: int | None) -> None:
    """Checks that nothing is given that the draft to start from determines."""
    for name, size in sizes.items():
        if size is not None:
            raise UserError(
                f"{name} is {size}, but the draft to start from determines it; leave out --{name}"
            )


def _fitting(
    kind: str, steps: int | None, rate: float | None, start_from: str | None, **more: int
) -> "Fitting":
    """Returns how a draft is trained, with what suits its kind for what is None."""
    from emsjax.train.fit import Fitting

    solved, further = kind in _SOLVED, start_from is not None
    usual = _RATE_FURTHER if further else _RATES[kind]
    return Fitting(
        steps=(0 if solved else 2000) if steps is None else steps,
        # Such a draft is right at depth 1 before the first update.
        one_ahead=0.0 if solved or further else 0.6,
        learning_rate=usual if rate is None else rate,
        **more,
    )


def _say(progress: "Progress") -> None:
    accepted = " ".join(f"{value:.2f}" for value in progress.accepted[:5])
    print(
        f"update {progress.step}: loss {progress.loss:.3f}, accepted tokens on held-out texts by "
        f"draft length: {accepted}",
        file=sys.stderr,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, see `command`."""
    return command.run(lambda: command.parse(_app, "train", arguments), _app)


if __name__ == "__main__":
    sys.exit(main())
