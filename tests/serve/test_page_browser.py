"""The page at `/` in a browser: it chats, streams, stops, and shows where tokens came from."""

import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from emsjax import LLM, RequestOutput, SamplingParams
from emsjax.engine.slots import Slots
from emsjax.serve.answers import ChatAnswer
from emsjax.serve.app import make_app
from emsjax.serve.backend import Backend, Call
from emsjax.serve.options import Settings
from tests.serve.conftest import NAME, PATIENCE, serving

pytestmark = pytest.mark.slow

KEY = "secret"
LONG_ANSWER = "w7 " * 60 + "w8"  # gets one of more than 40 tokens at temperature 0
# Where to leave screenshots, for whoever wants to look at them.
PICTURES = os.environ.get("EMSJAX_SCREENSHOTS")
Open = Callable[..., Any]


@pytest.fixture
def opened(browser, llm: LLM, backend: Backend) -> Iterator[Open]:
    """Opens the page; fails if it logs anything, or asks another server for something."""
    del backend  # gives the threads of all services the settings of the tests
    pages: list[tuple[Any, str, list[str], list[str]]] = []
    with ExitStack() as stack:

        def open_page(api_key: str | None = None, most_waiting: int = 1024, **options: Any) -> Any:
            given = Settings(name=NAME, api_key=api_key, most_waiting=most_waiting)
            app = make_app(Backend(llm, given))
            address = f"http://127.0.0.1:{stack.enter_context(serving(app))}/"
            page = browser.new_page(**options)
            page.set_default_timeout(1000 * 15)
            pages.append((page, address, requested := [], logged := []))
            page.on("request", lambda request: requested.append(request.url))
            page.on("console", lambda message: logged.append(message.text))
            page.on("pageerror", lambda error: logged.append(str(error)))
            page.goto(address)
            if api_key is None:
                page.locator("#model", has_text=NAME).wait_for()
            return page

        yield open_page
        for page, address, requested, logged in pages:
            # Browsers log what the server refuses, and answers that it does not finish.
            known = "status of 4(00|01|29)|ERR_INCOMPLETE_CHUNKED_ENCODING"
            assert [text for text in logged if not re.search(known, text)] == []
            others = [url for url in requested if not url.startswith(address)]
            assert others == ["data:,"] * len(others), "only the icon is not the server's"
            page.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds answers once they have some text, until the event is set."""
    go_on, begun = threading.Event(), threading.Event()
    listen, step = Call._listen, Slots.step

    def listen_first(call: Call, message: Any) -> None:
        listen(call, message)
        if getattr(message, "text", None):
            begun.set()

    def step_once(slots: Slots, more: bool) -> Any:
        assert not begun.is_set() or go_on.wait(PATIENCE)
        return step(slots, more)

    monkeypatch.setattr(Call, "_listen", listen_first)
    monkeypatch.setattr(Slots, "step", step_once)
    yield go_on
    go_on.set()


def ask(page: Any, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.keyboard.press("Enter")


def answer(page: Any, number: int = 1) -> Any:
    """Returns the element of an answer once it is complete."""
    page.locator("#log[aria-busy=false] article.assistant .about").nth(number - 1).wait_for()
    return page.locator("article.assistant").nth(number - 1)


def use(page: Any, **settings: Any) -> None:
    page.locator("summary").click()
    for name, value in settings.items():
        page.locator(f"#{name}").fill(str(value))
    page.locator("summary").click()


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def test_a_conversation_is_that_of_the_model(opened: Open, llm: LLM):
    page = opened()
    use(page, **{"temperature": 0, "max-tokens": 12, "system": "w3"})
    assert page.evaluate("document.activeElement.id") != "prompt"
    messages = [{"role": "system", "content": "w3"}]
    for turn, text in enumerate(("w7 w8", "w9\nw11"), start=1):
        messages.append({"role": "user", "content": text})
        (wanted,) = llm.chat(messages, SamplingParams(max_tokens=12))[0].outputs
        messages.append({"role": "assistant", "content": wanted.text})
        page.locator("#prompt").focus()
        for line, part in enumerate(text.split("\n")):
            if line:
                page.keyboard.press("Shift+Enter")
            page.keyboard.type(part)
        page.keyboard.press("Enter")
        said = answer(page, turn).locator(".said")
        assert said.evaluate("e => e.textContent") == wanted.text
        assert page.evaluate("document.activeElement.id") == "prompt"
    page.locator("#new").click()
    assert page.locator("article").count() == 0
    ask(page, "w7 w8")
    (wanted,) = llm.chat([messages[0], messages[1]], SamplingParams(max_tokens=12))[0].outputs
    assert answer(page).locator(".said").evaluate("e => e.textContent") == wanted.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_token_view_of_an_answer(opened: Open, finished: list[RequestOutput], scheme: str):
    page = opened(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(252, 252, 251)") == (scheme == "light")
    use(page, **{"temperature": 0, "max-tokens": 40})
    ask(page, LONG_ANSWER)
    shown = answer(page)
    (wanted,) = finished[-1].outputs
    steps, sources = wanted.trace.steps, wanted.trace.sources
    rejected = [step.rejected for step in steps if step.rejected]
    assert rejected
    assert len(wanted.token_ids) == 40
    assert any(step.drafted and not step.rejected for step in steps)
    drafted = sum(len(step.drafted) for step in steps)
    facts = f"{drafted} drafted, {sources.count('drafted')} accepted, "
    assert f"{facts}{sum(map(len, rejected))} rejected" in shown.inner_text()
    # With the keyboard: back from the message to the button, then to the tokens.
    for _ in range(9):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.textContent") == "Show tokens":
            break
    page.keyboard.press("Enter")
    for source in ("drafted", "bonus", "plain"):
        assert shown.locator(f".text .t.{source}").count() == sources.count(source)
    assert shown.locator(".text .miss").count() == len(rejected)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert page.locator("#tip .guess.wrong").is_visible()
    tip = page.locator("#tip").inner_text()
    assert wanted.trace.token_texts[rejected[0][0]].strip() in tip
    picture(page, f"tokens-{scheme}")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    shown.locator("button").click()
    assert shown.locator(".said").is_visible()
    assert shown.locator(".text").is_hidden()
    picture(page, f"chat-{scheme}")


@pytest.mark.parametrize("by", ["Escape", "button", "new chat"])
def test_an_answer_is_stopped(opened: Open, held: threading.Event, by: str):
    page = opened()
    use(page, temperature=0)
    ask(page, LONG_ANSWER)
    said = page.locator("article.assistant .said", has_text="w")
    said.wait_for()
    assert page.locator("#send").is_hidden()
    picture(page, "writing")
    if by == "Escape":
        page.keyboard.press("Escape")
    else:
        page.locator("#stop" if by == "button" else "#new").click()
    if by == "new chat":
        assert page.locator("article").count() == 0
    else:
        page.get_by_text("Stopped.").wait_for()
        assert said.is_visible()
    assert page.locator("#send").is_visible()
    held.set()
    use(page, **{"max-tokens": 3})
    ask(page, "w9")  # the stopped answer is part of the conversation
    answer(page, 1 if by == "new chat" else 2)
    assert page.locator(".error").count() == 0


def test_the_key_is_asked_for_and_kept_in_memory(opened: Open):
    page = opened(api_key=KEY)
    assert page.evaluate("document.activeElement.id") == "key"
    for given in ("wrong", "sch\u00f6n", KEY):
        page.locator("#key").fill(given)
        page.keyboard.press("Enter")
        if given != KEY:
            page.get_by_text("The key is wrong.").wait_for()
    page.locator("#model", has_text=NAME).wait_for()
    assert page.locator("#key-form").is_hidden()
    use(page, **{"max-tokens": 3})
    ask(page, "w7")
    answer(page)
    assert KEY not in page.content()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        *(0, 0, "")
    ]
    page.reload()
    assert page.locator("#key-form").is_visible()


def test_an_error_is_shown_and_the_message_given_back(opened: Open):
    page = opened()
    long = "w7 " * 300 + "end"
    ask(page, long)
    page.locator(".error").wait_for()
    assert "tokens" in page.locator(".error").inner_text()
    assert page.locator("#prompt").input_value() == long
    use(page, **{"temperature": -1})
    ask(page, "w7")
    assert page.locator("#settings").get_attribute("open") is not None
    assert page.locator("article").count() == 2, "nothing was sent"


def test_a_server_that_goes_away_is_an_error(opened: Open, monkeypatch: pytest.MonkeyPatch):
    """What was written stays, and the message is given back, to be sent again."""
    whole = ChatAnswer.events

    async def lost(answer: ChatAnswer, call: Call) -> AsyncIterator[bytes]:
        async for event in whole(answer, call):
            yield event
            if re.search(rb'"content": " *w', event):
                monkeypatch.undo()
                raise ConnectionError("the server goes away")

    monkeypatch.setattr(ChatAnswer, "events", lost)
    page = opened()
    use(page, temperature=0)
    ask(page, LONG_ANSWER)
    page.locator(".error").wait_for()
    assert page.locator(".error").inner_text() == "The connection to the server was lost."
    assert "w" in page.locator("article.assistant .said").inner_text()
    assert page.locator("#prompt").input_value() == LONG_ANSWER
    assert page.locator("#send").is_visible()
    picture(page, "lost")
    use(page, **{"max-tokens": 3})
    page.locator("#prompt").focus()
    page.keyboard.press("Enter")
    answer(page)
    assert page.locator(".error").count() == 1


def test_a_full_server_is_an_error(opened: Open):
    page = opened(most_waiting=0)
    ask(page, "w7")
    page.locator(".error").wait_for()
    picture(page, "full")
    assert "The request asks for 1 at a time" in page.locator(".error").inner_text()
    assert page.locator("#prompt").input_value() == "w7"


def test_text_never_becomes_an_element(opened: Open):
    page = opened()
    use(page, **{"max-tokens": 3})
    ask(page, "<img src=x onerror=alert(1)><b>w7</b>")
    answer(page)
    assert page.locator("#log img, #log b").count() == 0
    step = {"tokens": [{"id": 1, "text": "<b>1</b>\n", "source": "plain"}], "drafted": ["<i>"]}
    step |= {"accepted": 0, "rejected": ["<i>"]}
    page.evaluate("step => document.body.append(answerTokens.viewOf([step]))", step)
    assert page.locator(".text b").count() == 0
    assert page.locator(".text .miss").inner_text().startswith("<b>1</b>")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_fits_narrow_windows(opened: Open, width: int):
    page = opened(viewport={"width": width, "height": 700})
    use(page, **{"max-tokens": 40, "temperature": 0})
    ask(page, "w7 " * 60 + "w" * 200)
    shown = answer(page)
    shown.locator("button").click()
    shown.locator(".text .t").last.click()
    picture(page, f"tip-{width}")
    boxes = [page.locator("#tip").bounding_box()]
    page.locator("summary").click()
    picture(page, f"settings-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") <= 700
    boxes += [page.locator(name).bounding_box() for name in ("#prompt", "#send", "#system")]
    for box in boxes:
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
