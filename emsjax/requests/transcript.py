"""The growing text of one sample, and its end."""

from collections.abc import Collection, Sequence

from emsjax.requests.detokenizer import Detokenizer


class Transcript:
    """The tokens and text of one sample, fed by `Job.watch`.

    Neither the text nor its end depends on how many tokens come at once.

    Attributes:
      text: all text so far, cut at the stop string; "" without a detokenizer.
      stop: the stop string that ended the text; None if none did.
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

    def feed(self, tokens: Sequence[int]) -> int | None:
        """Takes the next tokens, and returns how many of them to keep; None to keep all.

        Fewer are kept if a stop string ends the text: the last one kept completes the string.
        """
        for count, token in enumerate(tokens, start=1):
            self._tokens += 1
            if token in self._stop_ids:
                if self._include_stop and self._detokenizer is not None:
                    self.text += self._detokenizer.push([token])
                return None
            if self._stops_with(token):
                return count
        return None

    def feed_all(self, tokens: Sequence[int]) -> None:
        """Takes all tokens at once, which is faster; there must be no stop strings."""
        if self._detokenizer is not None:
            kept = self._include_stop
            shown = [token for token in tokens if kept or token not in self._stop_ids]
            self.text += self._detokenizer.push_all(shown)

    def finish(self) -> str:
        """Ends the text after the last token, and returns all of it."""
        if self._detokenizer is not None and self.stop is None and not self._ended:
            self.text += self._detokenizer.flush()
        self._ended = True
        return self.text

    def take(self) -> str:
        """Returns the text that has become final since the last call."""
        end = len(self.text) - (0 if self._ended or self.stop else self._may_begin_stop())
        start, self._taken = self._taken, max(self._taken, end)
        return self.text[start : self._taken]

    def _stops_with(self, token: int) -> bool:
        new = "" if self._detokenizer is None else self._detokenizer.push([token])
        self.text += new
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
