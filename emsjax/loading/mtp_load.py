"""Loads MiMo's MTP module, from its target's checkpoint or from one of its own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import nnx

from emsjax.drafters.eagle import Eagle, Parts
from emsjax.engine.devices import bytes_of_device
from emsjax.errors import UserError
from emsjax.loading.eagle_tensors import layer_rules
from emsjax.loading.families import model_config
from emsjax.loading.head_kind import PREFIXES
from emsjax.loading.head_parts import ANOTHER, Head, embedding_difference, read_head
from emsjax.loading.load import LoadedModel, find_model
from emsjax.loading.parameters import bare
from emsjax.models.config import DecoderConfig
from emsjax.models.family import WeightMap, affine, rule
from emsjax.models.mtp_head import MtpHead

_TYPE = "mimo"
_MODULE = "mtp_layers.0"
_EMBEDDING = "embed_tokens.weight"
# A whole model around the module, and modules for later tokens, in whose place the first one runs.
_SPARE = (rf"(?!(model\.)?{_MODULE}\.).*", r".*\.rotary_emb\.inv_freq")


def load_mtp(head: Head, target: LoadedModel, draft_length: int, narrowest: int) -> Eagle:
    """Reads a module and returns the drafter; see `head_load.load_head`."""
    model, opened = target.model, find_model(head.directory)
    if opened.hf_config["model_type"] != _TYPE:
        raise UserError(
            f"the MTP module in {head.directory} is that of a {opened.hf_config['model_type']}, "
            f"but only those of MiMo ({_TYPE}) are supported; use another draft model"
        )
    config = replace(model_config(opened.hf_config), num_layers=1, windows=())
    # The model's own way to read its tensors, which may be quantised.
    names = {bare(name, PREFIXES): name for name in opened.source.shapes()}
    head = head._replace(source=opened.source, names=names)
    graphdef, params = read_head(
        head,
        lambda: MtpHead(config, rngs=nnx.Rngs(0), dtype=model.dtype),
        _weights(config),
        target,
        list(_differences(config, head, target)),
    )
    target_def, target_params = nnx.split(model)

    def merge(head: Any, target: Any) -> tuple[Any, Any]:
        return nnx.merge(graphdef, head), nnx.merge(target_def, target)

    return Eagle(
        name=head.label,
        weights=Parts(params, model.embedding_table, None, target_params),
        merge=merge,
        vocab_size=model.vocab_size,
        hidden_size=config.hidden_size,
        hidden_layers=(model.num_layers,),
        read_bytes=bytes_of_device((params, model.output_kernel)),
        output_bytes=bytes_of_device(model.output_kernel),
        observed_bytes=bytes_of_device(params),
        draft_length=draft_length,
        narrowest=narrowest,
        vocabulary=target.devices.vocabulary(model.vocab_size),
    )


def _differences(config: DecoderConfig, head: Head, target: LoadedModel) -> Iterator[str]:
    """Yields what does not fit the target."""
    model, width = target.model, config.hidden_size
    if width != model.hidden_size:
        yield f"it reads hidden states of size {width}, not {model.hidden_size}"
    elif width != model.embedding_kernel.shape[1]:
        yield f"its embedding is {width} wide, not {model.embedding_kernel.shape[1]}"
    if config.vocab_size != model.vocab_size:
        yield f"its vocabulary has {config.vocab_size} tokens, not {model.vocab_size}"
    if not _is_own(head.directory, target) and _has_anothers_embedding(head, target):
        yield "its embedding is that of another model"


def _is_own(directory: Path, target: LoadedModel) -> bool:
    return target.path is not None and directory.resolve() == target.path.resolve()


def _has_anothers_embedding(head: Head, target: LoadedModel) -> bool:
    shape = target.model.vocab_size, target.model.embedding_kernel.shape[1]
    if head.source.truncated or head.shape(_EMBEDDING) != shape:
        return False
    return embedding_difference(head.read(_EMBEDDING), target) > ANOTHER


def _weights(config: DecoderConfig) -> WeightMap:
    rules = {
        **affine("fc", f"{_MODULE}.input_proj", bias=False),
        "state_norm.scale": rule(f"{_MODULE}.hidden_layernorm.weight"),
        "token_norm.scale": rule(f"{_MODULE}.token_layernorm.weight"),
        "norm.scale": rule(f"{_MODULE}.final_layernorm.weight"),
        "layer.attention_norm.scale": rule(f"{_MODULE}.input_layernorm.weight"),
        **layer_rules(config, "layer", _MODULE),
    }
    return WeightMap(rules, _SPARE, PREFIXES)
