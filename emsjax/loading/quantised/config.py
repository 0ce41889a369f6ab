"""Reads a `quantization_config`, and refuses by name whatever it does not know."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from emsjax.errors import UserError
from emsjax.loading.hf.keys import shown

# Lists of the modules that stay wide, or do not. They need not be read: their tensors show it.
_LISTS = (
    *("modules_to_not_convert", "modules_to_convert", "ignore", "ignored_layers", "lm_head"),
    *("modules_in_block_to_quantize", "block_name_to_quantize"),
)
# How the numbers were found, and with which kernels they were meant to be used.
_PROCESS = (
    *("quantizer", "method", "meta", "backend", "model_name_or_path", "model_file_base_name"),
    *("dataset", "tokenizer", "batch_size", "pad_token_id", "model_seqlen", "max_input_length"),
    *("true_sequential", "damp_percent", "damp_auto_increment", "static_groups", "mse"),
    *("act_group_aware", "hyb_act", "cache_block_outputs", "module_name_preceding_first_block"),
    *("use_cuda_fp16", "use_exllama", "disable_exllama", "exllama_config", "pack_impl"),
    *("offload_to_disk", "offload_to_disk_path"),
)


class Fields:
    """The fields of a configuration, each of which must be read or known to be harmless."""

    def __init__(self, content: Mapping[str, Any], origin: str):
        self._content, self._origin = content, origin
        self._read = {"quant_method", *_LISTS, *_PROCESS}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self._content == other._content

    __hash__ = None  # type: ignore[assignment]

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a field, or `default` if there is none."""
        self._read.add(name)
        found = self._content.get(name)
        return default if found is None else found

    def one_of(self, name: str, allowed: Sequence[Any]) -> Any:
        """Returns a field that must have one of the given values; None means that it may lack."""
        value = self.get(name)
        if not any(value == each and type(value) is type(each) for each in allowed):
            choices = ", ".join(str(each) for each in allowed if each is not None)
            self.refuse(f"{name}={shown(value)}", f"use a copy with {choices}")
        return value

    def group_size(self, name: str) -> int | None:
        """Returns the number of columns in a group; None if there are no groups."""
        size = self.get(name, -1)
        if size == -1:
            return None
        if type(size) is not int or size < 1:
            self.refuse(f"{name}={shown(size)}", "use a copy with groups of 1 column or more")
        return size

    def block(self, name: str) -> tuple[int, int] | None:
        """Returns the rows and columns of a block; None if there are no blocks."""
        sizes = self.get(name)
        if sizes is None:
            return None
        whole = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)
        if not whole or len(sizes) != 2:
            self.refuse(f"{name}={shown(sizes)}", "use a copy with blocks of two sizes")
        return sizes[0], sizes[1]

    def absent(self, name: str, neutral: tuple[str, Any] | None = None) -> None:
        """Refuses a field, unless it is empty or the entry `neutral` of it shows that it is."""
        value = self.get(name)
        if neutral and isinstance(value, dict) and value.get(neutral[0]) == neutral[1]:
            return
        if value:
            self.refuse(f"{name}={shown(value)}", "use a copy without it")

    def no_overrides(self, name: str) -> None:
        """Refuses a field of settings for modules by their names, unless they change none.

        A name after "-:" keeps modules wide, which their tensors show.
        """
        value = self.get(name, {})
        if not isinstance(value, dict) or any(
            changes and not key.startswith("-:") for key, changes in value.items()
        ):
            self.refuse(f"{name}={shown(value)}", "use a copy whose modules are all alike")

    def inside(self, name: str) -> "Fields":
        """Returns the fields of a field."""
        value = self.get(name)
        if not isinstance(value, dict):
            self.refuse(f"{name}={shown(value)}", "use a copy whose weights are described there")
        return Fields(value, self._origin)

    def values(self, name: str) -> list["Fields"]:
        """Returns the fields of each value of a field, of which there is one at least."""
        value = self.get(name)
        if not isinstance(value, dict) or not value or not all(map(_mapping, value.values())):
            self.refuse(f"{name}={shown(value)}", "use a copy whose weights are described there")
        return [Fields(each, self._origin) for each in value.values()]

    def unread(self, *names: str) -> None:
        """Names fields that change nothing for emsjax."""
        self._read.update(names)

    def check(self, fits: bool, what: str) -> None:
        """Refuses the configuration unless it fits."""
        if not fits:
            self.refuse(what, "use another copy")

    def refuse(self, what: str, remedy: str) -> NoReturn:
        """Raises the error for something that is not supported."""
        raise UserError(
            f"{self._origin} has a quantization_config with {what}, which is not supported; "
            f"{remedy}, or one that is not quantised."
        )

    def check_all_read(self) -> None:
        """Refuses fields that nothing reads and that are not known to be harmless."""
        for name in self._unknown():
            self.refuse(f"{shown(name)}={shown(self._content[name])}", "use another copy")

    def _unknown(self) -> Iterator[str]:
        for name, value in self._content.items():
            if name not in self._read and value not in (None, False, [], {}):
                yield name


def _mapping(value: object) -> bool:
    return isinstance(value, dict)
