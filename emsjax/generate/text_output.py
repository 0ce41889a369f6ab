"""The texts of several prompts on one stream, in the order of the prompts."""

from collections.abc import Callable, Iterable, Sequence

from emsjax.requests.jsonl import Line

Section = tuple[int, int]  # number of the prompt, index of its output


class OrderedTexts:
    """Writes texts in order, each under a header; a text that arrives early waits for its turn.

    Args:
      lines: the prompts, numbered from 1.
      texts: the prompts as their headers show them.
      write: writes text to the stream.
    """

    def __init__(self, lines: Iterable[Line], texts: Sequence[str], write: Callable[[str], None]):
        sections = [(line, index) for line in lines for index in range(line.params.n)]
        self._headers = {
            (line.number, index): _header(line, index, texts) if len(sections) > 1 else ""
            for line, index in sections
        }
        self._order = list(self._headers)
        self._waiting: dict[Section, str] = {}
        self._finished: set[Section] = set()
        self._begun: Section | None = None  # header written, text not complete
        self._shown = 0
        self._write = write

    def add(self, number: int, index: int, text: str, *, finished: bool) -> None:
        """Takes the next piece of an output's text, and writes what is due."""
        section = (number, index)
        self._waiting[section] = self._waiting.get(section, "") + text
        if finished:
            self._finished.add(section)
        while self._order and self._order[0] in self._waiting:
            self._show(self._order[0])
            if self._begun is not None:
                return

    def give_up(self) -> None:
        """Writes all finished texts, without waiting for unfinished ones before them."""
        if self._begun is not None:
            self._write("\n")
            self._order.remove(self._begun)
            self._begun = None
        for section in [section for section in self._order if section in self._finished]:
            self._show(section)

    def _show(self, section: Section) -> None:
        if self._begun is None:
            gap = "\n" if self._shown and self._headers[section] else ""
            self._write(gap + self._headers[section])
            self._begun = section
            self._shown += 1
        if text := self._waiting.pop(section):
            self._write(text)
        if section in self._finished:
            self._write("\n")
            self._order.remove(section)
            self._begun = None


def _header(line: Line, index: int, texts: Sequence[str]) -> str:
    prompt = " ".join(texts[line.number - 1].split())
    short = prompt if len(prompt) <= 60 else f"{prompt[:59]}…"
    of = f", output {index + 1} of {line.params.n}" if line.params.n > 1 else ""
    return f"=== prompt {line.number} of {len(texts)}{of}: {short} ===\n"
