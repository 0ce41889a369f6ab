"""Memory and step costs of a setting's decode program by arithmetic; nothing is compiled."""

from typing import NamedTuple

from emsjax.engine.ladder import Rung
from emsjax.engine.sizes import Sizes
from emsjax.engine.step_costs import StepCosts
from emsjax.limits import MAX_STOP_IDS
from emsjax.models.config import DecoderConfig
from emsjax.models.division import share_of
from emsjax.plan.cycles import StepCycles
from emsjax.plan.memory import Memory
from emsjax.plan.setting import Setting

# Ways of guessing with separate experience, see `emsjax.engine.acceptance`.
_SOURCES = 4


class Program(NamedTuple):
    """What is known of a decode program.

    Attributes:
      memory: memory of the program.
      ladder: shapes of a step.
      costs: step costs estimated from bytes and operations.
      sizes: sizes of the model.
      cycles: cycles of a step by the compiler; None if nothing was compiled, or if the compiled
        program does not have the expected structure.
    """

    memory: Memory
    ladder: tuple[Rung, ...]
    costs: StepCosts
    sizes: Sizes
    cycles: StepCycles | None = None


def estimate(setting: Setting) -> Program:
    """Estimates the program without compiling it.

    Temporaries are a lower bound: only logits and activations.
    """
    sizes, ladder = setting.sizes(), setting.ladder()
    config = share_of(setting.config, setting.shards)
    rows = max(rung.capacity for rung in ladder)
    emitting = setting.num_slots * (setting.draft_length + 1)
    memory = Memory(
        setting.num_slots,
        weights=sizes.weights_bytes,
        cache=setting.num_slots * setting.capacity * sizes.token_bytes,
        state=state_bytes(setting),
        temporaries=emitting * config.vocab_rows * 4 + rows * _widest(config) * sizes.itemsize,
        compiled=False,
    )
    return Program(memory, ladder, setting.costs(sizes), sizes)


def _widest(config: DecoderConfig) -> int:
    """Returns the most numbers of a row that exist at the same time."""
    if config.experts is None:
        return 2 * config.intermediate_size + 4 * config.hidden_size
    # Each expert has the row's hidden states.
    inner = config.experts.per_row * (2 * config.experts.width + config.hidden_size)
    return inner + 4 * config.hidden_size


def state_bytes(setting: Setting) -> int:
    """Returns the bytes of `emsjax.engine.state.DecodeState` besides the cache, drafter included.

    The drafter is prompt lookup, which has no state.
    """
    per_slot = {
        "tokens and the step that emitted each": 2 * setting.capacity,
        "lengths": 4,
        "stop ids": MAX_STOP_IDS,
        "counters": 7 + 2 * setting.draft_length,
        "experience": 2 * _SOURCES,
    }
    live = setting.num_slots  # one byte each; everything else has four
    return live + 4 * (setting.num_slots * sum(per_slot.values()) + _SOURCES + 3)


def published_bytes(setting: Setting) -> int:
    """Returns the published size of the device's memory, less what jax leaves free on a GPU."""
    return setting.hardware.usable_bytes
