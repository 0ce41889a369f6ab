"""The text of one sample as it grows, and where it ends."""

from collections.abc import Collection, Sequence

from emsjax.requests.detokenizer import Detokenizer


class Transcript:
    """Tokens and text of one sample; what `Job.watch` feeds.

    Text and end do not depend on how many tokens came at once.

    Attributes:
      text: all text so far, cut before the stop string; "" without a detokenizer.
      stop: the stop string that ended it, None for none.
    """

    def __init__(
        self,
        detokenizer: Detokenizer | None,
        *,
        stop: Sequence[str] = (),
        stop_ids: Collection[int] = (),
        min_tokens: int = 0,
    ):
        """Starts empty.

        Args:
          detokenizer: for the sample's prompt; None for a model without a tokenizer.
          stop: strings that end it, none of them empty.
          stop_ids: tokens that end it and have no text.
          min_tokens: stop strings that are complete before so many tokens do not count.
        """
        self._detokenizer = detokenizer
        self._stop, self._stop_ids, self._min_tokens = tuple(stop), stop_ids, min_tokens
        self._longest = max(map(len, self._stop), default=0)
        self._tokens = 0
        self._taken = 0
        self._ended = False
        self.text = ""
        self.stop: str | None = None

    def feed(self, tokens: Sequence[int]) -> int | None:
        """Takes the next tokens; says after how many of them a stop string ends it, or None."""
        for count, token in enumerate(tokens, start=1):
            self._tokens += 1
            if token in self._stop_ids:
                return None
            if self._stops_with(token):
                return count
        return None

    def feed_all(self, tokens: Sequence[int]) -> None:
        """Takes all tokens there will be at once; there must be no stop strings."""
        if self._detokenizer is not None:
            shown = [token for token in tokens if token not in self._stop_ids]
            self.text += self._detokenizer.push_all(shown)

    def finish(self) -> str:
        """All of the text; no token follows."""
        if self._detokenizer is not None and self.stop is None and not self._ended:
            self.text += self._detokenizer.flush()
        self._ended = True
        return self.text

    def take(self) -> str:
        """Text that is final and was not taken before."""
        end = len(self.text) - (0 if self._ended or self.stop else self._may_begin_stop())
        start, self._taken = self._taken, max(self._taken, end)
        return self.text[start : self._taken]

    def _stops_with(self, token: int) -> bool:
        new = "" if self._detokenizer is None else self._detokenizer.push([token])
        self.text += new
        if not new or self._tokens < self._min_tokens:
            return False
        # Only what is complete now and was not before.
        before = len(self.text) - len(new)
        places = {s: self.text.find(s, max(0, before - len(s) + 1)) for s in self._stop}
        found = [stop for stop, place in places.items() if place >= 0]
        if not found:
            return False
        self.stop = min(found, key=places.__getitem__)
        self.text = self.text[: places[self.stop]]
        return True

    def _may_begin_stop(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        lengths = range(min(self._longest - 1, len(self.text)), 0, -1)
        for length in lengths:
            tail = self.text[-length:]
            if any(stop.startswith(tail) and stop != tail for stop in self._stop):
                return length
        return 0
