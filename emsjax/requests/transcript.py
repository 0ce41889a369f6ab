"""The growing text of one sample, and its end."""

from collections.abc import Callable, Collection, Sequence

from emsjax.errors import UserError
from emsjax.requests.detokenizer import Detokenizer


class Transcript:
    """The tokens and text of one sample, fed by `Job.watch`.

    Neither the text nor its end depends on how many tokens come at once.

    Attributes:
      text: all text so far, cut at the stop string; "" without a detokenizer.
      stop: the stop string that ended the text; None if none did.
      error: why the tokenizer cannot decode the text any further; None if it can.
    """

    def __init__(
        self,
        detokenizer: Detokenizer | None,
        *,
        stop: Sequence[str] = (),
        stop_ids: Collection[int] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
    ):
        """Starts empty.

        Args:
          detokenizer: one that starts after the sample's prompt; None without a tokenizer.
          stop: non-empty strings that end the text.
          stop_ids: tokens that end the text.
          min_tokens: a stop string that is complete before this many tokens is ignored.
          include_stop: whether the text ends with the stop string or the text of the stop token,
            rather than before it.
        """
        self._detokenizer = detokenizer
        self._stop, self._stop_ids, self._min_tokens = tuple(stop), stop_ids, min_tokens
        self._include_stop = include_stop
        self._longest = max(map(len, self._stop), default=0)
        self._tokens = 0
        self._taken = 0
        self._ended = False
        self.text = ""
        self.stop: str | None = None
        self.error: str | None = None

    def feed(self, tokens: Sequence[int]) -> int | None:
        """Takes the next tokens, and returns how many of them to keep; None to keep all.

        Fewer are kept if the last one kept completes a stop string or cannot be decoded.
        """
        for count, token in enumerate(tokens, start=1):
            self._tokens += 1
            if token in self._stop_ids:
                if self._include_stop:
                    self._add(token)
                return None if self.error is None else count
            if self._stops_with(token) or self.error is not None:
                return count
        return None

    def feed_all(self, tokens: Sequence[int]) -> None:
        """Takes all tokens at once, which is faster; there must be no stop strings."""
        if self._detokenizer is None:
            return
        kept = self._include_stop
        shown = [token for token in tokens if kept or token not in self._stop_ids]
        text = self._detokenizer.push_all(shown)
        if text is not None:
            self.text += text
            return
        for token in shown:
            self._add(token)
            if self.error is not None:
                return

    def finish(self) -> str:
        """Ends the text after the last token, and returns all of it."""
        if self.stop is None and self.error is None and not self._ended:
            self._extend(Detokenizer.flush)
        self._ended = True
        return self.text

    def take(self) -> str:
        """Returns the text that has become final since the last call."""
        end = len(self.text) - (0 if self._ended or self.stop else self._may_begin_stop())
        start, self._taken = self._taken, max(self._taken, end)
        return self.text[start : self._taken]

    def _stops_with(self, token: int) -> bool:
        new = self._add(token)
        if not new or self._tokens < self._min_tokens:
            return False
        # Only stop strings that end in the new text: earlier ones came before `min_tokens`.
        before = len(self.text) - len(new)
        places = {s: self.text.find(s, max(0, before - len(s) + 1)) for s in self._stop}
        found = [stop for stop, place in places.items() if place >= 0]
        if not found:
            return False
        self.stop = min(found, key=places.__getitem__)
        kept = len(self.stop) if self._include_stop else 0
        self.text = self.text[: places[self.stop] + kept]
        return True

    def _add(self, token: int) -> str:
        """Adds the text of a token, and returns it."""
        return self._extend(lambda detokenizer: detokenizer.push([token]))

    def _extend(self, decoding: Callable[[Detokenizer], str]) -> str:
        """Adds and returns what `decoding` returns; an error of the tokenizer becomes `error`."""
        if self._detokenizer is None:
            return ""
        try:
            new = decoding(self._detokenizer)
        except UserError as error:
            self.error, new = str(error), ""
        self.text += new
        return new

    def _may_begin_stop(self) -> int:
        """Counts the characters at the end of the text that a stop string may still remove."""
        if self._include_stop:
            return 0
        lengths = range(min(self._longest - 1, len(self.text)), 0, -1)
        for length in lengths:
            tail = self.text[-length:]
            if any(stop.startswith(tail) and stop != tail for stop in self._stop):
                return length
        return 0
