"""A chat template that raises gives its line an error; the other lines are answered."""

import json

from emsjax.loading.load import LoadedModel
from emsjax.requests.reader import RequestReader
from tests.tiny import words

TEMPLATE = """
{%- macro again() %}{{ again() }}{% endmacro -%}
{%- for m in messages -%}
{%- if m.role == 'zero' %}{{ 1 // 0 }}{% elif m.role == 'deep' %}{{ again() }}
{%- elif m.role == 'type' %}{{ m.content + 1 }}
{%- elif m.role == 'value' %}{{ m.content.index('missing') }}{% else %}{{ m.content }}{% endif -%}
{%- endfor -%}
"""
FAILS = ("zero", "deep", "type", "value")


def test_only_the_lines_whose_messages_the_template_refuses_fail(call, llm, monkeypatch, tmp_path):
    tokenizer = words()
    tokenizer.chat_template = TEMPLATE
    read = RequestReader(LoadedModel(None, tokenizer, (2,), "tiny", {}, {}), 101, 64, seed=0).read
    monkeypatch.setattr(llm, "request", lambda _self, *prompt: read(*prompt))
    # The fake answers with the attributes that both kinds of request have.
    monkeypatch.setattr("emsjax.requests.request.Request.token_ids", (119, 120), raising=False)
    roles = ["user", *FAILS, "user"]
    lines = (
        json.dumps({"messages": [{"role": role, "content": "w3"}], "id": n})
        for n, role in enumerate(roles)
    )
    called = call("--input", "-", "--output", "-", stdin="\n".join(lines).encode())
    assert called.status == 1
    assert "Traceback" not in called.err
    records = {record["id"]: record for record in called.records}
    assert len(records) == len(roles)
    for n, role in enumerate(roles):
        message = f"line {n + 1}: the chat template of tiny does not take these messages ("
        assert ("text" in records[n]) == (role == "user")
        assert role == "user" or records[n]["error"].startswith(message)
