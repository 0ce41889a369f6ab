"""From what was asked to plans: checks, and a setting for each model and device."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from emsjax.costs.hardware import HARDWARE
from emsjax.errors import check_whole
from emsjax.limits import DEFAULT_MAX_MODEL_LEN, MAX_DRAFT_LENGTH
from emsjax.loading.named import named_config
from emsjax.plan.answer import Plan, make_plan
from emsjax.plan.program import check_compiler
from emsjax.plan.setting import Setting


class Asked(NamedTuple):
    """What holds for all models and devices; named as `python -m emsjax.plan --help` names it."""

    batch_size: int
    max_model_len: int | None
    context: int | None
    dtype: str
    acceptance: float
    draft_length: int
    compile: bool


def ask(
    models: Sequence[str], devices: Sequence[str], asked: Asked, say: Callable[[str], None]
) -> Iterator[Plan]:
    """A plan for each model on each device, as each is made; all is checked before the first.

    Args:
      models: names or paths, see `named_config`.
      devices: names of `HARDWARE`.
      asked: the rest.
      say: told what is being compiled.

    Raises:
      UserError: there is no such model, something is out of range, or the compiler is missing.
    """
    check_whole("--batch-size", asked.batch_size, 1)
    check_whole("--draft-length", asked.draft_length, 1, MAX_DRAFT_LENGTH)
    compiled = [name for name in devices if asked.compile and HARDWARE[name].is_tpu]
    for name in compiled:
        check_compiler(name)
    settings = [_setting(model, name, asked) for model in models for name in devices]
    return (make_plan(each, each.topology in compiled, say) for each in settings)


def _setting(model: str, topology: str, asked: Asked) -> Setting:
    config = named_config(model)
    longest = asked.max_model_len
    if longest is None:
        longest = min(config.max_positions, DEFAULT_MAX_MODEL_LEN)
    check_whole("--max-model-len", longest, 2, config.max_positions)
    context = longest // 2 if asked.context is None else asked.context
    check_whole("--context", context, 1, longest)
    return Setting(
        name=model,
        config=config,
        topology=topology,
        hardware=HARDWARE[topology],
        num_slots=asked.batch_size,
        max_model_len=longest,
        context=context,
        dtype=asked.dtype,
        acceptance=asked.acceptance,
        draft_length=asked.draft_length,
    )
