"""Clients that put load on a server: some read to the end, some leave, cancel or send nonsense."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx2

from benchmarks.load_requests import BAD, Ask, Wanted, judge

# What a client does next, and how often.
_DOES = {"stream": 35, "whole": 25, "slow": 5, "leave": 15, "cancel": 10, "bad": 10}
# The least and the most seconds after which a client cancels a request.
PATIENCE = (0.05, 4.0)
# The longest pause of a slow reader between two chunks, and of anybody after a refusal, in seconds.
_PAUSE = 0.3
JSON = {"content-type": "application/json"}


@dataclass
class Seen:
    """What all clients have seen.

    Attributes:
      did: how often they did what, and how it ended.
      problems: what should not have happened.
      first: seconds to the first text of a stream.
      between: seconds between two chunks of a stream with text.
      per_token: seconds for each further token, of each stream.
    """

    did: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)


class Clients:
    """Clients of one server that go on until they are told to stop.

    Attributes:
      seen: by all of them.
      stopping: whether they end after what they have begun.
      losing: whether the server goes away: each client ends once it has noticed.
      asks: what they ask for.
      wanted: the answers to it.
    """

    def __init__(self, address: str, asks: Sequence[Ask], wanted: Sequence[Wanted]):
        """Prepares clients of a server that gives these answers to these requests."""
        self.seen, self.stopping, self.losing = Seen(), False, False
        self.asks, self.wanted, self._address = asks, wanted, address

    async def run(self, count: int) -> None:
        """Runs so many clients until `stopping`, and what they have begun to its end."""
        async with self._open() as http:
            await asyncio.gather(*(self._client(http, number) for number in range(count)))

    async def ask_all(self) -> None:
        """Asks for everything once, so that all programs are compiled and costs measured."""
        async with self._open() as http:
            pairs = zip(self.asks, self.wanted, strict=True)
            ended = await asyncio.gather(*(self._whole(http, *pair, None) for pair in pairs))
        self.seen.did.update(f"first: {each}" for each in ended)

    def _open(self) -> Any:
        limits = httpx2.Limits(max_connections=None)
        return httpx2.AsyncClient(base_url=self._address, timeout=600, limits=limits)

    async def _client(self, http: Any, number: int) -> None:
        rng = random.Random(number)
        while not self.stopping:
            does = rng.choices(list(_DOES), list(_DOES.values()))[0]
            place = rng.randrange(len(self.asks))
            ask, wanted = self.asks[place], self.wanted[place]
            try:
                if does == "bad":
                    ended = await self._bad(http, rng)
                elif does in ("whole", "cancel"):
                    patience = rng.uniform(*PATIENCE) if does == "cancel" else None
                    ended = await self._whole(http, ask, wanted, patience)
                else:
                    leaves_at = rng.randrange(12) if does == "leave" else None
                    ended = await self._stream(http, ask, wanted, leaves_at, does == "slow", rng)
            except httpx2.TransportError as error:
                ended = "no connection"
                if not self.losing:
                    self.seen.problems.append(f"{does}: {error!r}")
            self.seen.did[f"{does}: {ended}"] += 1
            if self.losing and ended == "no connection":
                return

    async def _bad(self, http: Any, rng: random.Random) -> str:
        status, path, body = rng.choice(BAD)
        answer = await http.post(path, content=body, headers=JSON)
        if answer.status_code != status or "error" not in answer.json():
            self.seen.problems.append(f"{body[:80]!r}: {answer.status_code} {answer.text[:200]}")
        await asyncio.sleep(rng.uniform(0, _PAUSE))
        return str(answer.status_code)

    async def _whole(self, http: Any, ask: Ask, wanted: Wanted, patience: float | None) -> str:
        try:
            async with asyncio.timeout(patience):
                answer = await http.post(ask.path, json=ask.body)
        except TimeoutError:
            return "cancelled"
        if answer.status_code != 200:
            self.seen.problems.append(f"{answer.status_code} {answer.text[:200]}")
            return str(answer.status_code)
        choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
        return self._judge(ask, wanted, [_text(choice) for choice in choices])

    async def _stream(
        self,
        http: Any,
        ask: Ask,
        wanted: Wanted,
        leaves_at: int | None,
        slow: bool,
        rng: random.Random,
    ) -> str:
        body = {**ask.body, "stream": True, "stream_options": {"include_usage": True}}
        texts = [""] * len(wanted.texts)
        times, asked, tokens, done = [], time.perf_counter(), 0, False
        async with http.stream("POST", ask.path, json=body) as answer:
            if answer.status_code != 200:
                self.seen.problems.append(f"{answer.status_code} to a stream")
                return str(answer.status_code)
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    self.seen.problems.append(f"{chunk['error']}")
                    return "error"
                for choice in chunk["choices"]:
                    texts[choice["index"]] += _text(choice)
                    if _text(choice):
                        times.append(time.perf_counter())
                tokens = (chunk["usage"] or {}).get("completion_tokens", tokens)
                if leaves_at is not None and len(times) > leaves_at:
                    return "left"
                if slow:
                    await asyncio.sleep(rng.uniform(0, _PAUSE))
        if not done:
            self.seen.problems.append("a stream without its end")
        if times and not slow:
            self._time(asked, times, tokens if len(texts) == 1 else 0)
        return self._judge(ask, wanted, texts)

    def _time(self, asked: float, times: list[float], tokens: int) -> None:
        seen = self.seen
        seen.first.append(times[0] - asked)
        seen.between += [after - before for before, after in pairwise(times)]
        if tokens > 1:
            seen.per_token.append((times[-1] - times[0]) / (tokens - 1))

    def _judge(self, ask: Ask, wanted: Wanted, texts: list[str]) -> str:
        found = judge(wanted, texts)
        if found == "different":
            mixed = any(other.texts == tuple(texts) for other in self.wanted)
            what = "another's answer" if mixed else "another answer"
            self.seen.problems.append(f"{what}: {ask.body} {wanted.texts!r} {texts!r}"[:1500])
        return found


def _text(choice: dict[str, Any]) -> str:
    """Returns the text of a choice, of a whole answer or a chunk."""
    if "text" in choice:
        return str(choice["text"])
    said = choice["message"] if "message" in choice else choice["delta"]
    return said.get("content") or ""
