"""The page in a browser: its content, pointer and keyboard, and that it loads nothing."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_up import HALF, REJECTED, SOURCES, STEPS, TOKENS, output, small

from emsjax import LLM, Report, SamplingParams
from tests.llm.conftest import model_dir  # noqa: F401

pytestmark = pytest.mark.slow

Open = Callable[..., Any]


@pytest.fixture
def opened(browser, tmp_path: Path) -> Iterator[Open]:
    """Opens reports; fails if a page logs anything or requests more than itself."""
    pages = []

    def open_report(report: Report, **options) -> Any:
        path = tmp_path / f"{len(pages)}.html"
        report.save(path)
        page = browser.new_page(**options)
        pages.append((page, path.as_uri(), requested := [], logged := []))
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: logged.append(message.text))
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_report
    for page, address, requested, logged in pages:
        assert logged == []
        assert requested == [address]
        page.close()


def sources_of(page) -> Counter:
    """Counts the tokens in the page's texts by the source they are marked with."""
    return Counter(
        {
            source: page.locator(f".text .t.{source}").count()
            for source in ("plain", "drafted", "bonus")
        }
    )


@contextmanager
def no_tip_after(page) -> Iterator[Any]:
    tip = page.locator("#tip")
    yield tip
    page.keyboard.press("Escape")
    assert tip.is_hidden()


@pytest.fixture(scope="module")
def outputs(model_dir: str):  # noqa: F811
    """Outputs of a real engine: refilled slots, several outputs per request, a stop string."""
    llm = LLM(model_dir, trace=True, max_batch_size=2, max_model_len=128, exact=True)
    prompts = [[7, 8, 9] * 6, [11], [5, 6] * 10, list(range(3, 40)), [7, 7, 7, 7]]
    params = SamplingParams(max_tokens=20, temperature=1.0, n=2, seed=3, stop=["1 w"])
    greedy = SamplingParams(max_tokens=40, ignore_eos=True)
    return llm.generate(prompts, [params, greedy, greedy, params, greedy])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_counts_are_those_of_the_metrics(opened: Open, outputs, scheme: str):
    report = Report(outputs)
    page = opened(report, color_scheme=scheme)
    counts = sources_of(page)
    metrics = [output.metrics for output in outputs]
    assert counts == report.sources
    assert counts.total() == sum(each.emitted_tokens for each in metrics)
    steps = [s for o in outputs for c in o.outputs for s in c.trace.steps]
    beyond_stop = sum(step.accepted - min(step.accepted, step.emitted) for step in steps)
    assert counts["drafted"] == sum(each.accepted_tokens for each in metrics) - beyond_stop > 0
    assert page.locator(".text .s").count() == sum(each.target_steps for each in metrics)
    for source, count in counts.items():
        entry = page.locator(f".key [data-source={source}] b")
        assert entry.inner_text() == f"{count:,}"
    rate = sum(each.emitted_tokens for each in metrics) / sum(m.target_steps for m in metrics)
    assert page.locator(".big").inner_text() == f"{rate:.2f}"
    assert page.locator(".miss").count() - 1 == sum(bool(s.rejected) for s in steps)
    assert page.locator(".stay").count() == page.locator("article").count() == 7


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_generated_text_is_never_run(opened: Open, scheme: str):
    page = opened(Report(output(), title="the title"), color_scheme=scheme)
    assert page.title() == "the title", "a script of the text has run"
    assert sources_of(page) == SOURCES
    texts = page.locator(".text .t").all_inner_texts()
    assert texts[1] == "<script>document.title = 'broken'</script>"
    assert page.locator(f".text [data-id='{HALF}'] .half").bounding_box()["width"] > 4


def test_hovering_shows_the_rejected_draft(opened: Open):
    page = opened(Report(output()))
    marks = page.locator(".text .miss")
    places = [TOKENS.index(token) for token in REJECTED if token in TOKENS]
    assert marks.count() == len(places) == sum(bool(step.rejected) for step in STEPS)
    for mark, (_, rejected) in zip(marks.all(), sorted(REJECTED.items()), strict=True):
        mark.hover()
        wrong = page.locator("#tip .guess.wrong")
        assert wrong.inner_text() == f"{rejected} ✗"
        assert page.locator(".cursor:visible").count() == 1
    page.locator("h1").hover()
    assert page.locator("#tip").is_hidden()
    assert page.locator(".on, .cursor:visible").count() == 0


def test_the_tip_of_a_step_shows_accepted_and_dropped_drafts(opened: Open):
    page = opened(Report(output()))
    page.locator(".text .t").nth(1).hover()
    tip = page.locator("#tip")
    assert re.match(r"Step 2 of 6: 2 tokens\s+drafted", tip.inner_text())
    kinds = [guess.get_attribute("class") for guess in page.locator("#tip .guess").all()]
    assert kinds == ["guess accepted", "guess wrong", "guess dropped", "guess bonus"]
    page.locator(".text .t").last.hover()
    assert "The text ended here; the rest of the draft was dropped." in tip.inner_text()
    assert page.locator("#tip .wrong").count() == 0
    page.locator(".text .t").first.hover()
    assert "Nothing was drafted" in tip.inner_text()


def test_the_keyboard_shows_the_tips_too(opened: Open):
    page = opened(Report(output()))
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "text":
            break
    with no_tip_after(page) as tip:
        assert "Step 1 of 6" in tip.inner_text()
        for rejected in (REJECTED[token] for token in sorted(REJECTED)):
            page.keyboard.press("ArrowDown")
            assert page.locator("#tip .guess.wrong").inner_text() == f"{rejected} ✗"
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")
        assert page.locator(".at").get_attribute("data-id") == "2"
        page.keyboard.press("ArrowLeft")
        assert page.locator(".at").get_attribute("data-id") == "1"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("End")
        assert page.locator(".at").get_attribute("data-id") == str(TOKENS[-1])
        page.keyboard.press("ArrowRight")
        assert page.locator(".at").count() == 1
        page.keyboard.press("Home")
        assert page.locator(".at").get_attribute("data-id") == str(TOKENS[0])


def test_the_keyboard_scrolls_to_tokens_out_of_sight(opened: Open):
    """The tip stays next to its token while the page scrolls."""
    page = opened(
        Report([*(output(str(n)) for n in range(12))]), viewport={"width": 600, "height": 400}
    )
    page.locator(".text").nth(10).focus()
    page.keyboard.press("ArrowDown")
    token, tip = page.locator(".at"), page.locator("#tip")
    for _ in range(2):
        at, tip_box = token.bounding_box(), tip.bounding_box()
        assert 0 <= at["y"] <= 400
        assert abs(tip_box["y"] - at["y"]) < tip_box["height"] + 60
        page.mouse.wheel(0, 40)
        page.evaluate("new Promise(requestAnimationFrame)")


def test_hovering_over_a_chart_describes_its_steps(opened: Open):
    page = opened(Report(output()))
    chart = page.locator(".chart")
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] * 2.5 / 6, "y": 5})
    assert "Step 3 of 6: 1 token" in page.locator("#tip").inner_text()
    assert page.locator(".s.on").count() == 1


def test_a_stay_in_a_slot_links_to_its_text(opened: Open):
    reports = [
        output("a"),
        output("b", first_step=8),
        *(small(str(n), first_step=16 + n * 3) for n in range(9)),
    ]
    page = opened(Report(reports))
    stay = page.locator(".stay").nth(1)
    stay.hover()
    assert "slot 0, steps 9 to 16 of the batch" in page.locator("#tip").inner_text()
    stay.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "output-1"
    assert page.url.endswith(".html"), "a notebook's frame must not go elsewhere"


def test_the_height_of_bars_is_proportional_to_their_shares(opened: Open):
    page = opened(Report(output()))
    bars = page.locator(".acceptance .bar").all()
    metrics = output().metrics
    shares = [
        accepted / drafted
        for drafted, accepted in zip(
            metrics.drafted_by_position, metrics.accepted_by_position, strict=True
        )
        if drafted
    ]
    assert len(set(shares)) > 1
    heights = [bar.bounding_box()["height"] for bar in bars]
    for height, share in zip(heights, shares, strict=True):
        assert height == pytest.approx(max(heights) * share / max(shares), abs=1)


def contrast(page, selector: str) -> float:
    """The contrast of an element's text with its background, as defined by WCAG 2."""
    return page.locator(selector).first.evaluate(
        """element => {
          const canvas = document.createElement("canvas")
            .getContext("2d", { willReadFrequently: true });
          const light = color => {
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
            const linear = x => (x /= 255) <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
            return .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
          };
          let parent = element;
          while (getComputedStyle(parent).backgroundColor === "rgba(0, 0, 0, 0)") {
            parent = parent.parentElement;
          }
          const found = [getComputedStyle(element).color, getComputedStyle(parent).backgroundColor];
          const [low, high] = found.map(light).sort((a, b) => a - b);
          return (high + .05) / (low + .05);
        }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_contrast_is_sufficient(opened: Open, scheme: str):
    page = opened(Report([output(), output("2", run_began=7.0)]), color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(252, 252, 251)") == (scheme == "light")
    words = (
        ".text .plain",
        ".text .drafted",
        ".text .bonus",
        ".name",
        ".facts",
        ".meaning",
        ".stay .label",
    )
    for selector in ("h1", ".lede", *words):
        assert contrast(page, selector) >= 4.5, selector


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_forced_colours(opened: Open, scheme: str):
    page = opened(Report(output()), color_scheme=scheme, forced_colors="active")
    for name in ("drafted", "bonus"):
        assert contrast(page, f".text .{name}") >= 4.5, name


def test_sources_differ_by_more_than_their_colour(opened: Open):
    page = opened(Report(output()))
    line = "e => (s => [s.borderBottomStyle, s.borderBottomColor])(getComputedStyle(e))"
    lines = [page.locator(f".text .{name}").first.evaluate(line) for name in SOURCES]
    assert [style for style, _ in lines] == ["solid", "solid", "dashed"]
    assert lines[0][1] == "rgba(0, 0, 0, 0)", "plain tokens have no underline"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_fits_narrow_windows(opened: Open, outputs, width: int):
    page = opened(Report([*outputs, output()]), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".text .miss").last.hover()
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def test_the_frame_of_a_notebook_works_like_the_page(browser, tmp_path: Path):
    """The frame is only allowed to run scripts."""
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<h1>mine</h1>{Report(output())._repr_html_()}", encoding="utf-8")
    page = browser.new_page()
    logged = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.goto(notebook.as_uri())
    frame = page.frame_locator("iframe")
    assert frame.locator(".text .t").count() == len(TOKENS)
    frame.locator(".text .miss").first.hover()
    assert frame.locator("#tip .guess.wrong").is_visible()
    frame.locator(".stay").first.click()
    assert frame.locator("article:focus").count() == 1
    assert page.locator("h1").evaluate("e => getComputedStyle(e).fontSize") == "32px", (
        "no style leaks"
    )
    assert logged == []
    page.close()
