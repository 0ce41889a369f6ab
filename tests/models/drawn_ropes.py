"""Rotary settings drawn at random, as newer configurations have them and older ones."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]
LENGTH = 40  # tokens of the text: longer than some trained lengths
POSITIONS = 64
_BOOL = st.booleans()
_FACTOR = st.sampled_from([0.5, 1.0, 1.7, 3.0])
_BASE = st.sampled_from([100.0, 10000.0, 5e5])
_PART = st.sampled_from([0.25, 0.5, 1.0])

LINEAR = {"rope_type": st.just("linear"), "factor": st.sampled_from([1.0, 2.5, 8.0])}
LLAMA3 = {
    "rope_type": st.just("llama3"),
    "factor": st.sampled_from([2.0, 8.0]),
    "low_freq_factor": st.sampled_from([1.0, 2.0]),
    "high_freq_factor": st.sampled_from([3.0, 4.0]),
    "original_max_position_embeddings": st.sampled_from([16, 32]),
}
YARN = {
    "rope_type": st.just("yarn"),
    "factor": st.sampled_from([2.0, 4.0]),
    "original_max_position_embeddings": st.sampled_from([16, 32]),
}
YARN_MORE = {
    "beta_fast": st.sampled_from([4.0, 32]),
    "beta_slow": st.sampled_from([0.5, 1]),
    "attention_factor": st.sampled_from([0.8, 1.5]),
    "truncate": _BOOL,
}


def _scaling(yarn_more: dict[str, Strategy]) -> Strategy:
    """Rotary settings of every type that any model may have."""
    return st.one_of(
        st.fixed_dictionaries({"rope_type": st.just("default")}),
        st.fixed_dictionaries(LINEAR),
        st.fixed_dictionaries(LLAMA3),
        st.fixed_dictionaries(YARN, optional=yarn_more),
    )


SCALING = _scaling(YARN_MORE)


def _with_base(scaling: Strategy, **more: Strategy) -> Strategy:
    rest = st.fixed_dictionaries({"rope_theta": _BASE}, optional=more)
    return st.builds(lambda one, other: one | other, scaling, rest)


def _older(scaling: Strategy, **keys: Strategy) -> Strategy:
    """Keys of a configuration from before `rope_parameters`, any of which may be absent."""
    return st.fixed_dictionaries({}, optional={"rope_scaling": st.none() | scaling, **keys})


def _called_type(scaling: Strategy) -> Strategy:
    """The same settings, with an older name for the type in some."""
    return st.builds(
        lambda settings, name: {
            name if key == "rope_type" else key: settings[key] for key in settings
        },
        scaling,
        st.sampled_from(["rope_type", "type"]),
    )


def _newer(settings: Strategy) -> Strategy:
    return st.fixed_dictionaries({"rope_parameters": settings})


def _partial(**older: Strategy) -> Strategy:
    """Settings of a family that turns heads in part."""
    newer = _newer(_with_base(SCALING, partial_rotary_factor=_PART))
    return newer | _older(_called_type(SCALING), **older)


# `transformers` ignores a `truncate` that is given for one kind of layer, so it is refused.
_OF_KIND = _with_base(_scaling({key: YARN_MORE[key] for key in YARN_MORE if key != "truncate"}))
_BY_KIND = _newer(
    st.fixed_dictionaries({"full_attention": _OF_KIND, "sliding_attention": _OF_KIND})
)
_FEW = st.fixed_dictionaries(LINEAR) | st.fixed_dictionaries(LLAMA3)
_GROWING = st.fixed_dictionaries(
    YARN | {"rope_theta": _BASE, "llama_4_scaling_beta": st.sampled_from([0.1, 0.5])},
    optional=YARN_MORE
    | {"mscale": st.sampled_from([1.0, 0.7]), "mscale_all_dim": st.sampled_from([1.0, 0.5])},
)
_OF_FAMILY: Mapping[str, Strategy] = {
    "gemma3_text": _BY_KIND | _older(_FEW, rope_theta=_BASE, rope_local_base_freq=_BASE),
    "olmo3": _BY_KIND | _older(_FEW, rope_theta=_BASE),
    "ministral3": _newer(_GROWING),
    "gpt_neox": _partial(rotary_pct=_PART, rotary_emb_base=_BASE),
    **dict.fromkeys(
        ("glm4", "nemotron", "phi", "stablelm"),
        _partial(partial_rotary_factor=_PART, rope_theta=_BASE),
    ),
}
_OF_OTHERS = _newer(_with_base(SCALING)) | _older(_called_type(SCALING), rope_theta=_BASE)


@st.composite
def _longrope(draw: st.DrawFn, head_dim: int) -> dict[str, Any]:
    """Settings of Phi-3, whose lists are as long as the turned part of a head."""
    part = draw(st.sampled_from([0.5, 1.0]))
    found = {"rope_theta": draw(_BASE), "partial_rotary_factor": part}
    if draw(_BOOL):
        return found
    pairs = int(head_dim * part) // 2
    factors = st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=pairs, max_size=pairs)
    kind = st.fixed_dictionaries({"rope_type": st.just("longrope")})
    kind |= st.fixed_dictionaries({"type": st.just("longrope")})
    lists = st.fixed_dictionaries(
        {"short_factor": factors, "long_factor": factors},
        optional={"factor": _FACTOR, "attention_factor": YARN_MORE["attention_factor"]},
    )
    # Up to the trained length only: emsjax refuses longer texts.
    trained = draw(st.integers(LENGTH, POSITIONS))
    scaling = draw(kind) | draw(lists)
    return found | {"rope_scaling": scaling, "original_max_position_embeddings": trained}


def ropes_of(model_type: str, head_dim: int) -> Strategy:
    """Returns the rotary settings of a family, as keys of its configuration."""
    if model_type == "phi3":
        return _longrope(head_dim)
    return _OF_FAMILY.get(model_type, _OF_OTHERS)
