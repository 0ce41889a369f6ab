"""An int8 cache by `LLM(kv_dtype=)` and by the commands' `--kv-dtype`."""

import pytest

import emsjax.llm
from emsjax import LLM, SamplingParams
from emsjax.errors import UserError
from emsjax.generate.options import Options, check
from emsjax.pallas_kernels.int8_cache import Int8Cache


def test_the_target_has_an_int8_cache_and_the_text_stays(
    model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, ahead = [], list[str]()
    monkeypatch.setattr(emsjax.llm, "compile_ahead", ahead.append)
    for kind in ("int8", None):
        llm = LLM(model_dir, kv_dtype=kind, max_batch_size=2, max_model_len=128)
        assert isinstance(llm.engine.cache_spec, Int8Cache) == (kind == "int8")
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        texts.append([each.outputs[0].token_ids for each in llm.generate(["w5 w7 w9"], params)])
    # Rounding a tiny model's keys and values changes none of the choices of so short a text.
    assert texts[0] == texts[1]
    # The attention for the cache's type is compiled while the model is loaded.
    assert ahead == ["int8", "auto"]


def test_an_unknown_type_is_refused(model_dir: str) -> None:
    with pytest.raises(UserError, match="kv_dtype 'int3' is unknown; choose int8, or leave it out"):
        LLM(model_dir, kv_dtype="int3")
    with pytest.raises(UserError, match="--kv-dtype int3 is unknown; choose from int8"):
        check(Options(kv_dtype="int3"))
