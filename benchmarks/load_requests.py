"""What the clients of `serve_load` ask for, and what the same model answers without a server."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.common import chat
from emsjax.host.json_text import to_json

_TOPICS = (
    *("rivers", "the moon", "bread", "chess", "volcanoes", "bees", "glass", "tides", "maps"),
    *("paper", "rust", "kites"),
)
_SYSTEM = (
    "You are a careful assistant. You answer in plain words, in short sentences, and only with "
    "what you are sure of. If a question has several parts, you answer them one by one."
)
_SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"type": "string", "maxLength": 12},
        "useful": {"type": "boolean"},
        "grade": {"type": "integer", "minimum": 1, "maximum": 10},
    },
    "required": ["topic", "useful", "grade"],
}
_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
# Two tokens whose log-probabilities are closer than this may change places by rounding.
TIED = 1e-3


@dataclass(frozen=True)
class Ask:
    """A request that the server answers.

    Attributes:
      path: its route.
      body: its fields, all of which are the same whenever it is asked.
    """

    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The answer without a server.

    Attributes:
      texts: of each output.
      ties: for a greedy output, the characters at which another token was as likely.
    """

    texts: tuple[str, ...]
    ties: tuple[tuple[int, int], ...] = ()


def asks(count: int) -> list[Ask]:
    """Returns different requests of all kinds."""
    return [_ask(number) for number in range(count)]


def _ask(number: int) -> Ask:
    topic = f"{_TOPICS[number % len(_TOPICS)]}, part {number}"
    length = 8 + 5 * (number % 9)
    greedy = {"temperature": 0, "max_tokens": length}
    sampled = {"temperature": 0.8, "seed": number, "max_tokens": length}
    system = [{"role": "system", "content": _SYSTEM}]
    question = chat(f"Tell me about {topic}.")
    json_of = {"type": "json_schema", "json_schema": {"name": "t", "schema": _SCHEMA}}
    kinds: list[tuple[str, dict[str, Any]]] = [
        (_CHAT, {"messages": question, **greedy}),
        (_CHAT, {"messages": system + question, **greedy}),
        (_TEXT, {"prompt": f"All I know about {topic}:", "stop": ["."], **greedy}),
        (_TEXT, {"prompt": f"A story about {topic}.", "n": 2, **sampled}),
        (_CHAT, {"messages": question, **sampled, "response_format": json_of, "max_tokens": 60}),
        (_TEXT, {"prompt": f"{topic} is", "top_k": 50, "repetition_penalty": 1.1, **sampled}),
    ]
    return Ask(*kinds[number % len(kinds)])


# Requests that are refused, with the status of their answer.
BAD: tuple[tuple[int, str, bytes], ...] = tuple(
    (status, path, body if isinstance(body, bytes) else to_json(body).encode())
    for status, path, body in (
        (400, _TEXT, b"{"),
        (400, _TEXT, {"prompt": "a", "temperature": -1}),
        (400, _TEXT, {"prompt": "word " * 20_000}),
        (400, _TEXT, {"prompt": "a", "guided_regex": "("}),
        (400, _TEXT, {"prompt": [-1]}),
        (400, _CHAT, {"messages": [{"role": "user"}]}),
        (404, _TEXT, {"prompt": "a", "model": "another"}),
        (404, "/nowhere", {}),
    )
)


def answers(options: dict[str, Any], asked: Sequence[Ask]) -> list[Wanted]:
    """Returns the answers of a model, which is loaded for it.

    Args:
      options: of `emsjax.LLM`.
      asked: the requests.
    """
    from emsjax import LLM
    from emsjax.serve.body import chat_of, completion_of

    llm = LLM(**options)

    def request(number: int, each: Ask) -> Any:
        read = (chat_of if each.path == _CHAT else completion_of)(dict(each.body))
        params = read.params
        if params.temperature == 0:
            params = replace(params, logprobs=2)
        return llm.request(read.prompts[0], params, str(number), read.chat)

    outputs = llm.run(request(number, each) for number, each in enumerate(asked))
    found = {int(output.request_id): output for output in outputs}
    return [_wanted(llm.get_tokenizer(), found[number]) for number in range(len(asked))]


def _wanted(tokenizer: Any, output: Any) -> Wanted:
    texts = tuple(each.text for each in output.outputs)
    (first, *_) = output.outputs
    ties = []
    for place, table in enumerate(first.logprobs or ()):
        best = sorted((each.logprob for each in table.values()), reverse=True)
        if best[0] - best[1] < TIED:
            begin, end = (len(tokenizer.decode(first.token_ids[: place + n])) for n in (0, 1))
            ties.append((begin, end))
    return Wanted(texts, tuple(ties))


def judge(wanted: Wanted, found: Sequence[str]) -> str:
    """Returns whether an answer is "equal", differs from a nearly tied token on ("tied"), or not.

    A sampled answer also depends on noise, which ties of log-probabilities say nothing about.
    """
    if tuple(found) == wanted.texts:
        return "equal"
    if len(found) == 1 == len(wanted.texts):
        pairs = zip(found[0], wanted.texts[0], strict=False)
        shorter = min(len(found[0]), len(wanted.texts[0]))
        first = next((n for n, (a, b) in enumerate(pairs) if a != b), shorter)
        if any(begin <= first <= end for begin, end in wanted.ties):
            return "tied"
    return "different"
