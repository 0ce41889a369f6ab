"""Random options of `LLM`: a model that is ready, or one short sentence."""

import random
from typing import Any

import pytest

from emsjax import LLM, llm
from emsjax.engine.devices import Devices
from emsjax.loading.dtypes import check_kv_dtype, check_quantize
from emsjax.loading.load import LoadedModel, load_model
from emsjax.requests.vllm_llm import LLM_OPTIONS
from tests.fuzzing import INPUTS, ODD, survives

pytest.importorskip("torch")

USUAL: dict[str, list[Any]] = {
    "tokenizer": [None, "t"],
    "drafter": [None, "none", "prompt-lookup", "combined", "draft-model"],
    "draft_model": [None, "no/such"],
    "method": ["ems", "none", "vanilla", "unpad-kv", "unpad-input"],
    "dtype": ["auto", "float32", "bfloat16", None],
    "max_batch_size": [1, 2, 3, 8, 16, 100, 10**6],
    "max_model_len": [2, 3, 63, 65, 512, 513, None],
    "draft_length": [1, 2, 7, 8, 31, 64, 100],
    "max_ngram": [1, 2, 9, 65, 600],
    "min_ngram": [1, 2, 3],
    "planner": [True, False],
    "exact": [True, False],
    "seed": [0, 3, 2**31, 2**64],
    "trace": [True, False],
    "max_num_seqs": [1, 2, None],
}
OWN = (*USUAL, "speculative_config")
VLLM = tuple(name for entry in LLM_OPTIONS for name in entry.names)
SPECULATIVE = {
    "method": "ngram",
    "model": None,
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}
VALUES: list[Any] = [
    *ODD,
    *("ems", "none", "vanilla", "unpad-kv", "prompt-lookup", "combined", "draft-model", "float32"),
    *(4, 7, 8, 64, 65, 500, 10**5000, b"ab", object(), 1j, {5: 1}, {"method": "ngram"}, print),
]


@pytest.fixture
def loaded(model_dir: str, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Loads the model only once, because this is not about files."""
    found = load_model(model_dir)

    def load(
        model: object,
        *,
        dtype: str,
        quantize: str | None,
        kv_dtype: str | None,
        tokenizer: str | None,
        devices: Devices,
    ) -> LoadedModel:
        del model, tokenizer, devices
        check_quantize(quantize)
        check_kv_dtype(kv_dtype)
        load_model(model_dir, dtype=dtype) if dtype != "auto" else None
        return found

    monkeypatch.setattr(llm, "load_model", load)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return found


def options_of(chance: random.Random) -> dict[str, Any]:
    """Returns a few options, more of them plausible than odd."""
    names = chance.choices(OWN if chance.random() < 0.9 else VLLM, k=chance.randrange(1, 4))
    options = {
        name: chance.choice(USUAL.get(name, VALUES) if chance.random() < 0.6 else VALUES)
        for name in names
    }
    if chance.random() < 0.2:
        key = chance.choice([*SPECULATIVE, "x"])
        options["speculative_config"] = SPECULATIVE | {key: chance.choice(VALUES)}
    return {"max_model_len": 64, "max_batch_size": 2} | options


def test_options_of_llm(loaded: LoadedModel) -> None:
    chance = random.Random("LLM")
    done = 0
    for _ in range(INPUTS):
        options = options_of(chance)
        done += survives(lambda: repr(LLM("m", **options)), _shown(options))  # noqa: B023
    assert 0 < done < INPUTS


@pytest.mark.parametrize("name", [*OWN, "model"])
@pytest.mark.usefixtures("loaded")
def test_a_number_that_python_refuses_to_print(name: str) -> None:
    options: dict[str, Any] = {"model": "m", "max_model_len": 64, name: 10**5000}
    assert not survives(lambda: LLM(**options), name)


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={llm.short(value)}" for name, value in options.items())
