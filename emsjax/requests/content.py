"""The content of a chat message: text, or a list of parts."""

from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError, short


def is_message(message: Mapping[str, Any]) -> bool:
    """Returns whether a message has what it needs: a role, and a content or calls of tools.

    Chat logs have a null content, or none, next to a call.
    """
    return "role" in message and ("content" in message or bool(message.get("tool_calls")))


def joined_parts(content: Any) -> Any:
    """Returns a list of parts of text as one text, and any other content unchanged.

    Parts are joined by line breaks, as vLLM does for templates that take text.

    Raises:
      UserError: a part is not text, such as an image.
    """
    if not isinstance(content, list | tuple):
        return content
    return "\n".join(_text(part) for part in content)


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else part
    if isinstance(part, Mapping) and kind == "text":
        if isinstance(part.get("text"), str):
            return part["text"]
        raise UserError("a part of a message's content has no 'text' that is text; give it one")
    raise UserError(
        f"a part of a message's content is {short(kind)}, and models take text only; give "
        "text, or parts {'type': 'text', 'text': ...}"
    )
