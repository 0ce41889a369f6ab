"""The tables in the README and `docs/planning-hardware.md` are those of `benchmarks.plans`."""

import json
from pathlib import Path

import pytest

from benchmarks.plans import FILE, cell_of, cells, page, slices, summary

ROOT = Path(__file__).parents[2]
PLANS = json.loads((ROOT / FILE).read_text())


def test_every_model_is_planned_for_every_chip():
    assert [cell_of(plan) for plan in PLANS] == list(cells())


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("docs/planning-hardware.md", page),
        ("docs/planning-hardware.md", slices),
        ("README.md", summary),
        ("README.md", slices),
    ],
)
def test_the_page_has_the_table(name, table):
    assert table(PLANS) in (ROOT / name).read_text()


def test_the_readme_says_what_opt_needs():
    (plan,) = (plan for plan in PLANS if cell_of(plan) == ("opt-6.7b", "v5e", "bfloat16"))
    needed, there = plan["memory"]["total"] / 1e9, plan["usable_bytes"] / 1e9
    text = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"in bfloat16 needs {needed:.1f} GB: too much for one TPU v5e chip ({there:.1f} GB)" in text
    )


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(cell_of(plan)))
def test_the_plan_has_the_settings_that_the_page_states(plan):
    settings = ("dtype", "batch_size", "max_model_len", "context", "acceptance", "draft_length")
    assert [plan[each] for each in settings] == ["bfloat16", 8, 2048, 1024, 0.7, 7]
    assert (plan.get("replicas", 1), plan.get("samples", 8)) == (1, 8)
    assert plan["largest_memory"]["compiled"]
    assert plan["memory"]["compiled"] == plan["fits"], "what does not fit is only counted"
