"""Random chat templates: a prompt, or one short sentence."""

import random
from functools import partial
from typing import Any

from emsjax.loading.load import LoadedModel
from emsjax.requests.chat import ChatOptions
from emsjax.requests.reader import RequestReader
from emsjax.requests.sampling_params import SamplingParams
from tests.fuzzing import INPUTS, survives
from tests.tiny import VOCAB_SIZE, words

MESSAGES = [{"role": "user", "content": "w7"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
# What a template that works is made of, with a part replaced.
WHOLE = (
    "{% for m in messages %}", "{{ m['role'] }} ", "{% if m.content is string %}",
    "{{ m.content | trim }} ", "{% else %}", "{% for p in m.content %}", "{{ p.text }}",
    "{% endfor %}", "{% endif %}", "{% endfor %}", "{{ tools | tojson }}",
    "{% if add_generation_prompt %}", "w6", "{% endif %}",
)  # fmt: skip
PARTS = (
    "{{", "}}", "{%", "%}", "messages", "for m in ", " if ", " endfor ", " endif ", "m", ".content",
    "['role']", "[0]", "|", "length", "tojson", "int", "trim", "/", "//", "%", "**", "~", "(", ")",
    "0", "1", "'a'", "loop.index", "namespace(x=1)", "raise_exception('no')", "set x = ", " in ",
    "none", "{#", "#}", "-", "\n", "bos_token", "add_generation_prompt", "macro f()", "f()",
    " endmacro ", "break", "continue", "generation", "\ud83d", "é",
)  # fmt: skip


def template(chance: random.Random) -> str:
    inside = "".join(chance.choices(PARTS, k=chance.randrange(1, 9)))
    odd = chance.choice(("{}", "{{{{{}}}}}", "{{%{}%}}")).format(inside)
    if chance.random() < 0.5:
        return odd
    pieces = list(WHOLE)
    at = chance.randrange(len(pieces))
    pieces[at : at + chance.choice((0, 1, 1, 2))] = [chance.choice((odd, pieces[-at], ""))]
    return "".join(pieces)


def test_chat_templates() -> None:
    chance = random.Random("templates")
    tokenizer: Any = words()
    model: Any = None
    reader = RequestReader(LoadedModel(model, tokenizer, (2,), "tiny", {}, {}), VOCAB_SIZE, 64, 0)
    done = 0
    for _ in range(INPUTS):
        tokenizer.chat_template = template(chance)
        options = ChatOptions(tools=chance.choice((None, TOOLS)))
        read = partial(reader.read, MESSAGES, SamplingParams(), "1", options)
        done += survives(read, tokenizer.chat_template)
    assert 0 < done < INPUTS
