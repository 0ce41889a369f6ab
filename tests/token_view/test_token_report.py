"""The page as text: its content, escaping, size and file."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import END, SOURCES, STEPS, TEXTS, TOKENS, completion, metrics, output, small

from emsjax import Report, RequestOutput, UserError
from emsjax.engine.trace import TraceStep
from emsjax.generate.page import page_of_run
from emsjax.token_view.columns import columns
from emsjax.token_view.shown import shown_outputs
from emsjax.token_view.timeline import timelines


class Page(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def having(self, **values) -> list[dict]:
        return [
            attrs
            for _, attrs in self.tags
            if all(value in str(attrs.get(name, "")).split() for name, value in values.items())
        ]


def test_tokens_are_marked_by_their_source():
    report = Report(output())
    page = Page(report.html())
    assert report.sources == SOURCES
    for source, count in SOURCES.items():
        tokens = [attrs for attrs in page.having(**{"class": source}) if "data-id" in attrs]
        assert len(tokens) == count
        (entry,) = page.having(**{"data-source": source})
        assert entry["data-count"] == str(count)
    ids = [int(attrs["data-id"]) for _, attrs in page.tags if "data-id" in attrs]
    assert ids == TOKENS


def test_generated_text_never_becomes_an_element():
    page = Page(Report([output(), small("</title><script>1</script>")], title="<b>").html())
    counts = {name: sum(tag == name for tag, _ in page.tags) for name in ("script", "img", "b")}
    assert counts == {"script": 1, "img": 0, "b": 3}, "only those of the page itself"
    assert "49" not in "".join(page.texts)
    assert TEXTS[1] in page.texts
    (title,) = [text for text in page.texts if text == "<b>"][:1]
    assert title


def test_drafts_are_stored_as_data_attributes():
    page = Page(Report(output()).html())
    drafts = page.having(**{"class": "s"})
    found = [attrs.get("data-draft") for attrs in drafts]
    assert found[0] is None
    assert len(found) == len(STEPS)
    assert json.loads(found[1]) == [TEXTS[1], TEXTS[4], TEXTS[3]]
    assert json.loads(found[5]) == ["\u2400\u241b", TEXTS[END], "plain"]
    assert [attrs.get("data-accepted") for attrs in drafts] == [None, "1", "0", "2", "2", "2"]
    assert ["data-ended" in attrs for attrs in drafts] == [False] * 5 + [True]


def test_parts_of_characters_and_special_tokens_are_shown_without_text():
    (shown,) = shown_outputs(output(), "1", 0)
    tokens = {token.id: token for step in shown.steps for token in step.tokens}
    assert (tokens[7].text, tokens[7].name) == ("", "")
    assert tokens[8].text == "é"
    assert (tokens[END].text, tokens[END].name) == ("", "<|end|>")
    assert tokens[11].text == "\u2400\u241b", "control characters as pictures"
    page = Report(output()).html()
    assert page.count('<span class="half"></span>') == 1
    assert '<span class="name">&lt;|end|&gt;</span>' in page


def test_a_draft_token_without_text_is_shown_by_its_id():
    (shown,) = shown_outputs(small(drafted=(7, 0)), "1", 0)
    assert shown.steps[0].drafted == ["#7", "plain"]


def test_text_after_a_stop_string_is_shown_as_cut():
    steps = [TraceStep((5, 6), 1, 2)]
    made = completion(steps, [5, 4], "line\n\nbreaks\na 'qu")
    (shown,) = shown_outputs(RequestOutput("1", "p", (1,), [made], metrics(steps)), "1", 0)
    first, second = shown.steps[0].tokens
    assert (first.text, first.cut) == (TEXTS[5], "")
    assert (second.text, second.cut) == ("a 'qu", 'oted\' "word"')


def test_ids_without_a_tokenizer():
    made = output(pieces=None, token_texts={})
    page = Report(made).html()
    assert all(f">{token} </span>" in page for token in TOKENS)
    (shown,) = shown_outputs(made, "1", 0)
    assert shown.steps[1].drafted == ["#1", "#4", "#3"]


def test_accepted_tokens_after_a_stop_string_are_reported():
    steps = [TraceStep((0, 0), 2, 1), TraceStep((0,), 1, 0)]
    made = RequestOutput("1", "p", (1,), [completion(steps, [0])], metrics(steps))
    report = Report(made)
    assert report.sources == {"drafted": 1}
    assert "2 accepted tokens after a stop string are in no text" in report.html()


def test_the_number_of_texts_is_bounded_and_all_requests_are_counted():
    report = Report((small(str(number)) for number in range(7)), most_outputs=3)
    page = report.html()
    assert page.count("<article") == 3
    assert "7 requests, 7 tokens in 7 target steps. The first 3 requests are shown" in page
    assert report.totals.requests == 7
    assert report.sources == {"plain": 7}


def test_a_page_without_requests():
    assert "No request has finished." in Report().html()


def test_texts_are_in_the_order_in_which_they_entered_their_slots():
    first, second, third = (
        small(name, slot=slot, first_step=step)
        for name, slot, step in (("a", 0, 0), ("b", 1, 0), ("c", 0, 5))
    )
    page = Report([third, second, first]).html()
    assert re.findall("<h3>Request (.)</h3>", page) == ["a", "b", "c"]


def test_several_outputs_of_a_request():
    steps = [TraceStep((), 0, 1)]
    made = [completion(steps, [0], slot=n, prompt_shared=n > 0) for n in range(2)]
    request = RequestOutput("x", "the prompt", (1,), made, metrics(steps))
    page = Report(request).html()
    assert re.findall("<h3>(.*?)</h3>", page) == ["Request x, output 1", "Request x, output 2"]
    assert page.count("<details") == 1, "the outputs share the prompt"


def test_each_run_has_a_timeline_with_a_lane_for_each_slot():
    outputs = [
        shown
        for number, (slot, step, began) in enumerate(
            [(0, 0, 1.0), (2, 0, 1.0), (0, 3, 1.0), (0, 0, 9.0)]
        )
        for shown in shown_outputs(small(slot=slot, first_step=step, run_began=began), "1", number)
    ]
    first, second = timelines(outputs)
    assert [
        (lane.slot, [(s.first, s.prefill, s.length) for s in lane.stays]) for lane in first.lanes
    ] == [
        (0, [(0, 3, 3), (3, 3, 3)]),
        (2, [(0, 3, 3)]),
    ]
    assert (first.steps, second.steps) == (6, 3)
    assert first.ticks == [0, 1, 2, 3, 4, 5, 6]
    assert "steps 4 to 6 of the batch" in first.lanes[0].stays[1].description[1]
    (shared,) = shown_outputs(small(prompt_shared=True, prefill_steps=0), "1", 0)
    (timeline,) = timelines([shared])
    assert timeline.lanes[0].stays[0].prefill == 0


def test_the_height_of_a_column_is_the_number_of_emitted_tokens():
    steps = [TraceStep((), 0, 1), TraceStep((1, 2, 3), 2, 3), TraceStep((1, 2), 2, 2)]
    found = columns(enumerate(steps))
    assert found.plain == "M0 0h0.84v-1h-0.84z"
    assert found.bonus == "M1 0h0.84v-1h-0.84z"
    assert found.drafted == "M1 -1h0.84v-2h-0.84zM2 0h0.84v-2h-0.84z"
    assert found.rejected == "M1 0h0.84v1h-0.84z"


def test_a_notebook_shows_the_page_in_a_frame():
    report = Report(output())
    (tag, attrs), *others = Page(report._repr_html_()).tags
    assert (tag, others) == ("iframe", [])
    assert attrs["srcdoc"] == report.html()
    assert attrs["sandbox"] == "allow-scripts"


def test_a_page_replaces_an_existing_file(tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text("before")
    report = Report(output())
    report.save(path)
    assert path.read_text(encoding="utf-8") == report.html()
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_name_that_utf8_cannot_encode_is_replaced(tmp_path: Path):
    Report(small("\ud800")).save(tmp_path / "page.html")
    assert "<h3>Request ?</h3>" in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_reported(tmp_path: Path):
    for path in (tmp_path, tmp_path / "no" / "page.html", Path("/dev/null")):
        with pytest.raises(UserError, match="cannot write the report to"):
            Report().save(path)
    with pytest.raises(UserError, match="most_outputs is 0"):
        Report(most_outputs=0)


def test_the_page_of_an_interrupted_run_has_the_finished_requests(tmp_path: Path, capsys):
    def run(*outputs):
        with page_of_run(str(tmp_path / "page.html"), "title") as show:
            for each in outputs:
                show(each)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        run(small('"a name"'))
    assert "Request a name" in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().err == f"wrote the report to {tmp_path / 'page.html'}\n"


def test_the_page_loads_nothing():
    """The page has no import, link or font; the only address in it is a namespace."""
    page = Report(output()).html().replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://|@import|url\(", page)
    assert len(Report().html()) < 32_000, "style and script stay small"
