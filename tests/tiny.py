"""Tiny random Hugging Face models of every family: the oracle, and checkpoints to load."""

import atexit
import copy
import functools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
NEOX_SIZES = {key: size for key, size in LLAMA_SIZES.items() if key != "num_key_value_heads"}
FALCON_SIZES = {key: NEOX_SIZES[key] for key in NEOX_SIZES if key != "intermediate_size"}
OPT_SIZES = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "word_embed_proj_dim": 32,
}
GEMMA_SIZES = {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 20}
GRANITE_FACTORS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
}
LONGROPE = {
    "original_max_position_embeddings": 300,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 300,
        "short_factor": [1.5, 2.0],
        "long_factor": [3.0, 4.0],
    },
}
GROWING_ROPE = YARN_ROPE | {
    "original_max_position_embeddings": 30,
    "llama_4_scaling_beta": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
COHERE2 = {"sliding_window": 24, "sliding_window_pattern": 2, "logit_scale": 1.0}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
GPT_OSS_EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2, "swiglu_limit": 1.5}
SLIDING = {"sliding_window": 24, "use_sliding_window": True}

# name: (model type, Hugging Face configuration)
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", OPT_SIZES),
    "opt-350m": (
        "opt",
        OPT_SIZES | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "llama": ("llama", LLAMA_SIZES | {"tie_word_embeddings": False}),
    "llama3": ("llama", LLAMA_SIZES | {"rope_parameters": LLAMA3_ROPE}),
    "llama-tied": ("llama", LLAMA_SIZES | {"tie_word_embeddings": True, "head_dim": 12}),
    "mistral": ("mistral", LLAMA_SIZES | {"sliding_window": 24}),
    "qwen2": ("qwen2", LLAMA_SIZES | {"rope_parameters": YARN_ROPE}),
    "qwen2-mixed": ("qwen2", LLAMA_SIZES | SLIDING | {"max_window_layers": 1}),
    "qwen3": ("qwen3", LLAMA_SIZES | {"head_dim": 16}),
    "gemma": ("gemma", LLAMA_SIZES | {"num_key_value_heads": 1, "head_dim": 12}),
    "gemma2": (
        "gemma2",
        LLAMA_SIZES | GEMMA_SIZES | {"final_logit_softcapping": 5.0, "hidden_activation": "gelu"},
    ),
    "smollm3": ("smollm3", LLAMA_SIZES | {"no_rope_layer_interval": 2}),
    "granite": ("granite", LLAMA_SIZES | GRANITE_FACTORS),
    "olmo2": ("olmo2", LLAMA_SIZES),
    "olmo3": ("olmo3", LLAMA_SIZES | {"sliding_window": 24, "layer_types": LAYER_TYPES}),
    "phi3": ("phi3", LLAMA_SIZES | LONGROPE),
    "ministral3": ("ministral3", LLAMA_SIZES | {"head_dim": 8, "rope_parameters": GROWING_ROPE}),
    "gpt-neox": ("gpt_neox", NEOX_SIZES),
    "pythia-serial": (
        "gpt_neox",
        NEOX_SIZES | {"use_parallel_residual": False, "hidden_act": "gelu_fast"},
    ),
    "starcoder2": ("starcoder2", LLAMA_SIZES | {"sliding_window": 24}),
    "cohere": ("cohere", LLAMA_SIZES | {"logit_scale": 0.5}),
    "cohere2": ("cohere2", LLAMA_SIZES | COHERE2),
    "qwen3-moe": ("qwen3_moe", LLAMA_SIZES | EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3-moe-mixed": ("qwen3_moe", LLAMA_SIZES | EXPERTS | {"mlp_only_layers": [1]}),
    "mixtral": ("mixtral", LLAMA_SIZES | {"num_local_experts": 5, "sliding_window": 24}),
    "olmoe": ("olmoe", LLAMA_SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 2.0}),
    "gpt-oss": ("gpt_oss", LLAMA_SIZES | GPT_OSS_EXPERTS | {"head_dim": 16, "sliding_window": 24}),
    "glm4": ("glm4", LLAMA_SIZES | {"head_dim": 16}),
    "exaone4": ("exaone4", LLAMA_SIZES | {"sliding_window": 24, "sliding_window_pattern": 2}),
    "nemotron": ("nemotron", LLAMA_SIZES),
    "phi": ("phi", LLAMA_SIZES),
    "stablelm": ("stablelm", LLAMA_SIZES | {"qk_layernorm": True, "use_parallel_residual": True}),
    "falcon": ("falcon", FALCON_SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "helium": ("helium", LLAMA_SIZES | {"head_dim": 8}),
    "mimo": ("mimo", LLAMA_SIZES | {"head_dim": 16, "num_nextn_predict_layers": 1}),
    "gemma3": ("gemma3_text", LLAMA_SIZES | GEMMA_SIZES | {"layer_types": LAYER_TYPES}),
}
VOCAB_SIZE = 101


@functools.cache
def oracle(name: str) -> Any:
    """Returns the tiny PyTorch model called `name`, in float32 and evaluation mode."""
    return random_model(*TINY[name], seed=len(name))


def random_model(model_type: str, settings: dict[str, Any], seed: int) -> Any:
    """Returns a PyTorch model with random weights, in float32 and evaluation mode.

    Args:
      model_type: its type in `transformers`.
      settings: its configuration; the special tokens and the width of the weights are added, and
        the vocabulary if it has none.
      seed: of the weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _make_mimo_known()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        model_type,
        # A copy, because `transformers` fills in what its dictionaries lack.
        **({"vocab_size": VOCAB_SIZE} | copy.deepcopy(settings)),
        # So wide that logits are apart, and greedy text does not repeat one token for ever.
        **{"init_std" if model_type == "opt" else "initializer_range": 0.3},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases start at 0 or 1, which would hide mistakes.
            if parameter.ndim == 1 or "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@functools.cache
def _make_mimo_known() -> None:
    """Tells `transformers` of MiMo, whose class it reads from the authors' repository only.

    The model is Qwen2, and has a module that Qwen2 does not run (`tests.drafters.eagle_heads`).
    """
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    class MiMoConfig(Qwen2Config):
        model_type = "mimo"
        num_nextn_predict_layers: int = 0

    class MiMoForCausalLM(Qwen2ForCausalLM):
        config_class = MiMoConfig

    AutoConfig.register("mimo", MiMoConfig)
    AutoModelForCausalLM.register(MiMoConfig, MiMoForCausalLM)


def temporary_directory(prefix: str) -> Path:
    """Makes a directory that goes when this process ends, as every pytest worker does."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def checkpoint(name: str) -> Path:
    """Returns a safetensors directory with the weights of `oracle(name)`."""
    directory = temporary_directory(f"tiny-{name}-")
    oracle(name).save_pretrained(directory)
    return directory


def words(count: int = VOCAB_SIZE) -> "PreTrainedTokenizerFast":
    """Returns a tokenizer with one word per token: w0, w1, and so on.

    Unknown words become w0. w2 ends a text.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{number}": number for number in range(count)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = AddedToken("w2", single_word=True)  # The beginning of w20 is no end.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=end, unk_token="w0")
    tokenizer.chat_template = "{% for m in messages %}w5 {{ m['content'] }} {% endfor %}w6"
    return tokenizer


def byte_level() -> "PreTrainedTokenizerFast":
    """Returns a tokenizer of the printable letters of ASCII and of some pairs of them.

    Its tokens are written as GPT-2 writes them: a space has another letter. Token 2 ends a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "<s>", "</s>", *map(chr, range(0x21, 0x7F)), "\u0120", '{"', '":', 'a"']
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    assert len(vocabulary) == VOCAB_SIZE
    tokens = Tokenizer(models.BPE(vocabulary, [("{", '"'), ('"', ":"), ("a", '"')]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="</s>", bos_token="<s>", pad_token="<pad>"
    )


def chat_checkpoint(name: str, directory: Path) -> Path:
    """Copies `checkpoint(name)` to a new directory and adds a tokenizer with a chat template."""
    return _with_tokenizer(name, directory, words())


def letter_checkpoint(name: str, directory: Path) -> Path:
    """Copies `checkpoint(name)` to a new directory and adds the tokenizer `byte_level`."""
    return _with_tokenizer(name, directory, byte_level())


def _with_tokenizer(name: str, directory: Path, tokenizer: "PreTrainedTokenizerFast") -> Path:
    shutil.copytree(checkpoint(name), directory)
    tokenizer.save_pretrained(directory)
    return directory
