"""The table in `docs/planning-hardware.md` holds the figures that `python -m emsjax.plan` wrote."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/planning-hardware.md"
RESULTS = [ROOT / f"benchmarks/results/{name}.json" for name in ("plans", "plans-int8")]
PLANS = [plan for file in RESULTS for plan in json.loads(file.read_text())]
NAMES = {"opt-6.7b": "OPT-6.7B", "llama-3-8b": "Llama-3-8B", "smollm2-135m": "SmolLM2-135M"}


def name_of(plan: dict[str, Any]) -> str:
    quantised = f"-{plan['quantize']}" if plan.get("quantize") else ""
    return f"{plan['model']}{quantised}-{plan['topology']}"


def both(counted: str, by_compiler: str) -> str:
    return f"{counted} ({by_compiler})"


def step_ms(step: dict[str, Any]) -> str:
    return both(*(f"{1e3 * step[each]:#.3g}" for each in ("seconds", "compiler_seconds")))


def row(plan: dict[str, Any]) -> str:
    needed, there = plan["memory"]["total"] / 1e9, plan["usable_bytes"] / 1e9
    plain, *_, widest = (step for step in plan["steps"] if step["purpose"] != "prompts")
    batch = plan["step_batch_size"]
    speedup = next(each for each in plan["speedups"] if each["batch_size"] == batch)
    cells = [
        NAMES[plan["model"]] + (f" in {plan['quantize']}" if plan.get("quantize") else ""),
        f"{plan['topology']}-1",
        f"{'yes' if plan['fits'] else 'no'}: {needed:.1f} of {there:.1f} GB",
        str(plan["largest_batch_size"]),
        str(batch),
        step_ms(plain),
        step_ms(widest),
        both(f"{speedup['counted']['planned']:.2f}", f"{speedup['by_compiler']['planned']:.2f}"),
    ]
    return f"| {' | '.join(cells)} |"


def test_every_model_is_planned_for_every_chip():
    wide = {f"{m}-{t}" for m in NAMES for t in ("v5e", "v6e")}
    assert {name_of(plan) for plan in PLANS} == wide | {"llama-3-8b-int8-v5e"}


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
def test_the_page_has_the_row(plan):
    assert row(plan) in PAGE.read_text().splitlines()


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
def test_the_plan_has_the_settings_that_the_page_states(plan):
    settings = ("dtype", "batch_size", "max_model_len", "context", "acceptance", "draft_length")
    assert [plan[each] for each in settings] == ["bfloat16", 8, 2048, 1024, 0.7, 7]
    assert plan["largest_memory"]["compiled"]
    assert plan["memory"]["compiled"] == plan["fits"], "what does not fit is only counted"
