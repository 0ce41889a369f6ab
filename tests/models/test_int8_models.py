"""Models whose weights were turned into int8 when they were loaded, against PyTorch."""

import copy

import numpy as np
import pytest

from emsjax import LLM, SamplingParams, UserError
from emsjax.loading.conversion import convert_model
from emsjax.loading.load import load_model
from emsjax.loading.opened import open_model
from tests.models.test_parity import our_logits
from tests.tiny import VOCAB_SIZE, checkpoint, oracle

torch = pytest.importorskip("torch")

# A tied embedding, a head of its own, transposed kernels, projections around the layers, a scaled
# embedding, a fused gate with logits that are scaled, experts whose router is not rounded,
# and experts that lie the other way round.
NAMES = ("llama-tied", "llama", "gpt2", "opt-350m", "gemma3", "cohere", "mixtral", "gpt-oss")


def rounded(weight):
    """Returns a matrix [out, in] with each row rounded to 255 steps of its largest number."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    scale[scale == 0] = 1  # the padding token's
    return torch.round(weight / scale).clamp(-127, 127) * scale


def quantised_oracle(name: str):
    """Returns the PyTorch model with the matrices of its products and its embedding rounded."""
    from transformers.pytorch_utils import Conv1D

    model = copy.deepcopy(oracle(name))
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, Conv1D):  # GPT-2's, [in, out]
                module.weight.copy_(rounded(module.weight.T).T)
            elif isinstance(module, torch.nn.Linear) and not tied(path, model):
                module.weight.copy_(rounded(module.weight))
            elif hasattr(module, "gate_up_proj"):  # the experts of a layer
                for stored in (module.gate_up_proj, module.down_proj):
                    experts = stored.mT if module.is_transposed else stored  # [E, out, in]
                    experts.copy_(torch.stack([rounded(weight) for weight in experts]))
        embedding = model.get_input_embeddings()
        embedding.weight.copy_(rounded(embedding.weight))
    return model


def tied(path: str, model) -> bool:
    return path == "lm_head" and model.config.tie_word_embeddings


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_the_rounded_weights(name: str):
    tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (3, 30))
    with torch.no_grad():
        theirs = quantised_oracle(name)(torch.tensor(tokens)).logits.numpy()
    ours = our_logits(load_model(checkpoint(name), quantize="int8").model, tokens, 30)
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        plain = oracle(name)(torch.tensor(tokens)).logits.numpy()
    assert np.abs(plain - theirs).max() > 1e-2, "the rounding does not show"


def test_drafts_do_not_change_the_text(tmp_path):
    """Neither does the way through a checkpoint, whose weights are kept in int8."""
    model, prompts = checkpoint("llama-tied"), [[5, 6, 7], [8, 9, 5, 6], [11]]
    convert_model(open_model(model, {"llama"}), tmp_path / "int8", quantize="int8")
    params, options = SamplingParams(max_tokens=30), {"max_batch_size": 2, "max_model_len": 64}

    def texts(name, **more):
        outputs = LLM(str(name), planner=False, **options, **more).generate(prompts, params)
        return [output.outputs[0].token_ids for output in outputs]

    plain = texts(model, quantize="int8", drafter="none")
    assert texts(model, quantize="int8", drafter="prompt-lookup") == plain
    assert texts(tmp_path / "int8", drafter="draft-model", draft_model=str(model)) == plain
    with pytest.raises(UserError, match="has int8 weights already"):
        load_model(tmp_path / "int8", quantize="int8")
