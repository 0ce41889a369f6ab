"""The content of a chat message: text, or a list of parts."""

import reprlib
from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError


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
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        part = part.get("text")
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else part
    raise UserError(
        f"a part of a message's content is {reprlib.repr(kind)}, and models take text only; give "
        "text, or parts {'type': 'text', 'text': ...}"
    )
