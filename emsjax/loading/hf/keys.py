"""Refuses keys of a Hugging Face configuration that could change the text and are not read."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.hf.generation import GENERATION_KEYS

# Keys of any family that do not change the text: they serve training, other tasks or other
# programs, or are read elsewhere (the special tokens).
HARMLESS = frozenset(
    {
        *("model_type", "architectures", "transformers_version", "name_or_path", "_name_or_path"),
        *("_commit_hash", "dtype", "torch_dtype", "model_max_length", "max_sequence_length"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"),
        *("unk_token_id", "mask_token_id", "decoder_start_token_id", "prefix", "tokenizer_class"),
        *("output_hidden_states", "output_attentions", "return_dict", "use_return_dict"),
        *("chunk_size_feed_forward", "torchscript", "use_cache", "use_bfloat16", "is_decoder"),
        *("id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task"),
        *("task_specific_params", "classifier_dropout", "hidden_dropout", "token_dropout"),
        *("initializer_range", "init_std", "initializer_factor", "gradient_checkpointing"),
        *("dropout", "attention_dropout", "activation_dropout", "embedding_dropout"),
        *("residual_dropout", "layerdrop", "neftune_noise_alpha", "pretraining_tp"),
        *("attention_probs_dropout_prob", "hidden_dropout_prob"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
        *("_attn_implementation_internal", "_experts_implementation_internal"),
        *("_flash_attn_2_enabled", "use_flash_attention", "use_flash_attn", "flash_attn"),
        *("distributed_config", "tie_last_hidden_states", "unsloth_fixed", "unsloth_version"),
        *("transformers.js_config", "transformers_weights", "license", "author", "description"),
        *("version", "is_llama_config", "base_model", "model_name", "output_past", "xla_device"),
        "auto_map",  # `check_code` looks at it
    }
)
# Keys that `transformers` replaces by others, which are read.
REPLACED = frozenset({"rope_theta", "rope_scaling", "partial_rotary_factor"})
_CODE = ("auto_map", "custom_pipelines")
_QUANTISED = ("quantization_config", "quantization", "compression_config")
# Keys of other models whose absence means true, not false.
_MEANT = ("is_causal", "causal", "use_rope", "use_rotary", "rope")


class ReadKeys(Mapping[str, Any]):
    """A configuration that remembers which of its keys were read."""

    def __init__(self, config: Mapping[str, Any]):
        self._config, self.read = config, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self._config[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def check_code(config: Mapping[str, Any], origin: str) -> None:
    """Refuses a configuration that comes with code of its own or describes quantised weights.

    Raises:
      UserError: it does.
    """
    for key in _CODE:
        if config.get(key) and not (key == "auto_map" and _is_usual_code(config)):
            raise UserError(
                f"{origin} names code of its own ({key}), which emsjax does not run; use another "
                f"model, or remove {key} if the model needs only the usual code of its type."
            )
    for key in _QUANTISED:
        if config.get(key):
            method = config[key].get("quant_method") if isinstance(config[key], dict) else None
            named = f" ({shown(method)})" if method else ""
            raise UserError(
                f"{origin} has a {key}{named}, but emsjax reads how weights are quantised only "
                "from a quantization_config at the top; use another copy, or remove "
                f"{key} if this one is not quantised."
            )


def _is_usual_code(config: Mapping[str, Any]) -> bool:
    """Returns whether the classes of a configuration's code are those of its type.

    Repositories that are older than their type in `transformers`, such as Phi-3's and Falcon's,
    still name them. `transformers` also prefers its own.
    """
    classes = config["auto_map"] if isinstance(config["auto_map"], dict) else {"": None}
    kind = str(config.get("model_type")).replace("_", "")
    return all(
        # A tokenizer's code is refused by its own file.
        key == "AutoTokenizer" or str(name).rsplit(".")[-1].lower() == _usual_class(key, kind)
        for key, name in classes.items()
    )


def _usual_class(auto: str, kind: str) -> str:
    """Returns the usual name of a type's class, in lower case.

    Args:
      auto: the class of `transformers` that finds it: AutoConfig, AutoModel or AutoModelFor….
      kind: the type.
    """
    part = auto.removeprefix("Auto").lower()
    return kind + (part if part in ("config", "model") else part.removeprefix("model"))


def check_read(
    config: Mapping[str, Any],
    read: Collection[str],
    harmless: Collection[str],
    implied: Mapping[str, Any],
    origin: str,
) -> None:
    """Refuses keys that could change the text and that the family does not read.

    Args:
      config: a Hugging Face configuration.
      read: the keys that the family read.
      harmless: keys of the family that do not change the text.
      implied: keys that do not change the text with these values.
      origin: name of the configuration in messages.

    Raises:
      UserError: there are such keys; the message names them.
    """
    unread = [
        key
        for key, value in config.items()
        if key not in read
        and key not in harmless
        and key not in HARMLESS
        and key not in GENERATION_KEYS
        and not (value == implied[key] if key in implied else _neutral(key, value))
    ]
    if unread:
        pairs = ", ".join(f"{key}={shown(config[key])}" for key in unread[:4])
        more = f" and {len(unread) - 4} more" if len(unread) > 4 else ""
        raise UserError(
            f"{origin} sets {pairs}{more}, which emsjax does not know and which may change the "
            "text; use another model, or remove what this one does not need."
        )


def _neutral(key: str, value: Any) -> bool:
    """Returns whether a key with this value says the same as no key."""
    return value is None or value in ("", [], {}) or value is (key in _MEANT)


def shown(value: Any) -> str:
    """Returns a value in Python's form, cut to a few characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
