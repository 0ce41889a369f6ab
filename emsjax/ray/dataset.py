"""The call of `map_batches` that keeps the slots of each actor busy."""

from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError, check_whole
from emsjax.limits import BATCH_SIZE
from emsjax.ray.stage import Generate
from emsjax.requests.sampling_params import SamplingParams

# Batches that an actor works on at once, and the slots that each of them would fill. While the last
# rows of one batch are being decoded, the others fill the slots.
_BATCHES, _TIMES_SLOTS = 4, 2
_PLATFORMS = ("tpu", "gpu", "cpu")


def generate(
    dataset: Any,
    *,
    platform: str,
    actors: int = 1,
    devices: int = 1,
    sampling_params: Mapping[str, Any] | None = None,
    id_column: str = "id",
    batch_size: int | None = None,
    ray_options: Mapping[str, Any] | None = None,
    **engine: Any,
) -> Any:
    """Generates a text for each row of a dataset, lazily, as Ray Data does everything.

    Rows have `messages` or `prompt`, and perhaps `sampling_params`. All columns stay, and
    `generated_text`, `generated_tokens`, `num_generated_tokens`, `num_input_tokens` and
    `__inference_error__` join them; see `emsjax.ray.rows`.

    Args:
      dataset: the rows, a `ray.data.Dataset`, as is what comes back.
      platform: what an actor needs: "tpu", "gpu" or "cpu".
      actors: the number of actors, each with a copy of the model.
      devices: the TPU chips, GPUs or CPU cores of an actor.
      sampling_params: sampling parameters for rows that do not have them.
      id_column: where a row may have its id, from which its seed follows.
      batch_size: the rows of a batch; twice the slots by default. An actor works on four batches at
        once.
      ray_options: further arguments of `map_batches`, such as `accelerator_type`.
      engine: the arguments for `LLM`, such as `model` and `max_batch_size`.

    Raises:
      UserError: Ray is not installed, or an option is wrong.
    """
    try:
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise UserError(f"Ray is missing ({error}); install emsjax with the extra [ray].") from None
    options = map_options(platform, devices, batch_size, engine.get("max_batch_size", BATCH_SIZE))
    check_whole("actors", actors, 1)
    SamplingParams.from_mapping(sampling_params or {})  # before anything is started
    return dataset.map_batches(
        Generate,
        fn_constructor_kwargs={
            "sampling_params": dict(sampling_params or {}),
            "id_column": id_column,
            **engine,
        },
        compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=_BATCHES),
        **{**options, **(ray_options or {})},
    )


def map_options(platform: str, devices: int, batch_size: int | None, slots: int) -> dict[str, Any]:
    """Returns the arguments of `map_batches` that follow from the platform and the slots.

    Args:
      platform: what an actor needs: "tpu", "gpu" or "cpu".
      devices: the TPU chips, GPUs or CPU cores of an actor.
      batch_size: the rows of a batch; None for twice the slots.
      slots: B, the samples that an actor decodes together.

    Raises:
      UserError: the platform is unknown, or a number is not positive.
    """
    if platform not in _PLATFORMS:
        raise UserError(f"platform={platform!r} is unknown; choose from {', '.join(_PLATFORMS)}.")
    check_whole("devices", devices, 1)
    rows = _TIMES_SLOTS * slots if batch_size is None else batch_size
    check_whole("batch_size", rows, 1)
    resources: dict[str, dict[str, Any]] = {
        "tpu": {"resources": {"TPU": devices}},
        "gpu": {"num_gpus": devices},
        "cpu": {"num_cpus": devices},
    }
    return {"batch_size": rows, "max_concurrency": _BATCHES, **resources[platform]}
