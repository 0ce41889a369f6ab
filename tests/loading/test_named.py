"""Built-in configurations, and configurations of files without weights."""

import json
import math
import re
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading import hub
from emsjax.loading.build import abstract_model
from emsjax.loading.conversion import convert_model
from emsjax.loading.families import supported
from emsjax.loading.hf.config import complete_config
from emsjax.loading.load import find_model
from emsjax.loading.named import named_config
from emsjax.loading.published import PUBLISHED
from emsjax.models.config import DecoderConfig

# Number of parameters of the published checkpoints, counting tied ones once.
PARAMETERS = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "smollm3-3b": 3_075_098_624,
    "granite-3.0-2b": 2_533_531_648,
    "granite-3.0-8b": 8_170_848_256,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-3-7b": 7_298_011_136,
    "olmo-3-32b": 32_233_522_176,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "pythia-160m": 162_322_944,
    "pythia-1.4b": 1_414_647_808,
    "pythia-6.9b": 6_857_302_016,
    "starcoder2-3b": 3_030_371_328,
    "starcoder2-7b": 7_173_923_840,
    "aya-expanse-8b": 8_028_033_024,
    "command-r": 34_980_831_232,
    "command-r7b": 8_028_033_024,
    "command-a": 111_057_580_032,
    "ministral-3-3b": 3_429_006_336,
    "ministral-3-8b": 8_489_553_920,
    "ministral-3-14b": 13_506_073_600,
    "command-r-plus": 103_810_674_688,
    "glm-4-9b": 9_400_279_040,
    "glm-4-32b": 32_566_081_536,
    "exaone-4.0-1.2b": 1_279_391_488,
    "exaone-4.0-32b": 32_003_216_384,
    "minitron-4b": 4_190_509_056,
    "minitron-8b": 8_271_699_968,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "stablelm-2-1.6b": 1_644_515_328,
    "stablelm-3b-4e1t": 2_795_443_200,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "helium-1-preview-2b": 2_172_643_840,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "olmoe-1b-7b": 6_919_161_856,
    "mimo-7b": 7_833_409_536 - 210_790_400,  # without its MTP module
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}

pytestmark = pytest.mark.usefixtures("real_models")


def test_parameter_counts_equal_the_published_ones():
    found = {}
    for name, config in PUBLISHED.items():
        _, params, _ = abstract_model(complete_config(config, supported(), name))
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.to_pure_dict(params))]
        found[name] = sum(sizes)
    assert found == PARAMETERS


def test_every_family_has_two_sizes():
    kinds = Counter(config["model_type"] for config in PUBLISHED.values())
    # These were published in one size.
    assert supported() - {kind for kind in kinds if kinds[kind] > 1} == {
        *("smollm3", "olmoe", "helium", "mimo")
    }


def used_by_a_row(config: DecoderConfig, count: int) -> int:
    """Returns the number of parameters without the experts that a row does not choose."""
    experts, layers = config.experts, config.num_layers - len(config.dense_layers)
    if experts is None:
        return count
    each = 3 * config.hidden_size * experts.width
    return count - layers * (experts.number - experts.per_row) * each


SIZE = re.compile(r"(?:(\d+)x)?([\d.]+)([bm])(?![a-z])")


@pytest.mark.parametrize("name", [name for name in PARAMETERS if SIZE.search(name)])
def test_models_are_as_large_as_their_names_say(name: str):
    """Some names count the embeddings, some do not; 30b-a3b is all, and what a row uses."""
    config, count = named_config(name), PARAMETERS[name]
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tied else 2)
    said = sorted(
        int(times or 1) * float(number) * {"b": 1e9, "m": 1e6}[unit]
        for times, number, unit in SIZE.findall(name)
    )
    counts = (used_by_a_row(config, count), count)[-len(said) :]
    for size, counted in zip(said, counts, strict=True):
        # The eight parts of 8x22b share their attention.
        assert (0.79 if re.search(r"\dx\d", name) else 0.92) * size < counted
        assert counted - embeddings < 1.25 * size


def test_settings_that_do_not_affect_the_parameter_count():
    opt, llama, qwen = (named_config(n) for n in ("opt-350m", "llama-3.2-3b", "Qwen3-4B"))
    assert (opt.num_heads, opt.embedding_size, opt.norm_place, opt.final_norm) == (
        16,
        512,
        "residual",
        False,
    )
    assert (llama.num_heads, llama.num_kv_heads, llama.head_dim) == (24, 8, 128)
    assert (llama.max_positions, llama.tied) == (131072, True)
    assert (qwen.num_heads, qwen.head_dim, qwen.max_positions) == (32, 128, 40960)
    assert set(named_config("mistral-7b").windows) == {4096}
    assert named_config("mistral-7b-v0.3").windows == ()


def test_rope_settings_reach_the_configuration():
    theta = [named_config(n).rope.inverse_frequencies[1] ** -32 for n in ("smollm2-135m",)]
    assert theta == pytest.approx([1e5], rel=1e-4)
    plain, long = named_config("llama-3-8b").rope, named_config("llama-3.1-8b").rope
    assert plain.inverse_frequencies[1] ** -64 == pytest.approx(5e5, rel=1e-4)
    assert long.inverse_frequencies[0] == plain.inverse_frequencies[0]
    assert long.inverse_frequencies[-1] == pytest.approx(plain.inverse_frequencies[-1] / 8)


def test_files_without_weights(tmp_path: Path):
    file = tmp_path / "other.json"
    file.write_text(json.dumps(PUBLISHED["opt-125m"] | {"num_hidden_layers": 3}))
    assert named_config(file).num_layers == 3
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["opt-125m"]))
    assert named_config(str(tmp_path)) == named_config("opt-125m")


def test_a_converted_model(tmp_path: Path, hf_dir: Path):
    convert_model(find_model(hf_dir), tmp_path / "converted")
    assert named_config(tmp_path / "converted") == named_config(hf_dir)


def test_only_the_configuration_of_a_hub_model_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PUBLISHED["gpt2"]))
    asked = []

    def download(*args, **_options):
        asked.append(args)
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert named_config("some/model") == named_config("gpt2")
    assert asked == [("some/model", "config.json")]


def test_an_unreachable_hub():
    with pytest.raises(UserError, match=r"some/model.*the hub cannot be reached"):
        hub.hub_config("some/model")


@pytest.mark.parametrize(
    ("name", "closest"),
    [("opt-7b", "opt-6.7b"), ("opt-6.7", "opt-6.7b"), ("gemma-3-4b-it", "gemma-3-4b")],
)
def test_an_unknown_name_is_answered_with_the_closest_names(name: str, closest: str):
    with pytest.raises(UserError, match=rf"{name}.*built-in name such as .*{closest}"):
        named_config(name)


@pytest.mark.parametrize("fails", ["no address", "no answer", "refused"])
def test_an_unreachable_hub_is_reported_at_once(fails: str, monkeypatch: pytest.MonkeyPatch):
    """The hub's own client tries for half a minute."""

    def connect(*_: Any, **__: Any) -> None:
        if fails == "no answer":
            time.sleep(5)
        raise OSError(fails)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(hub, "_REACH_S", 0.1)
    for ask in (hub.hub_config, hub.hub_snapshot):
        started = time.perf_counter()
        with pytest.raises(UserError, match=r"some/model.*the hub cannot be reached \(.*; check"):
            ask("some/model")
        assert time.perf_counter() - started < 2


def test_the_hub_is_looked_for_through_a_proxy(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def connect(address: Any, timeout: float) -> Any:
        asked.append(address)
        return socket.socket()

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy.example:3128"})
    assert hub._unreachable() is None
    assert asked == [("proxy.example", 3128)]
