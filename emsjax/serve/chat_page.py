"""The page at `/`, which chats with the model: one document with its style and scripts inside."""

import base64
import hashlib
from importlib.resources import files
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from emsjax.token_view.page import asset


class ChatPage(NamedTuple):
    """A page to send.

    Attributes:
      html: the document. It holds no secrets, so that browsers may have it without a key.
      headers: those of its answer.
    """

    html: str
    headers: dict[str, str]


def chat_page(needs_key: bool) -> ChatPage:
    """Returns the page.

    Args:
      needs_key: whether the server wants a key, which the page then asks for.
    """
    # Each file is an element of its own, whose hash the policy names.
    styles = [asset("tokens.css"), _file("chat.css")]
    scripts = [asset("view.js"), _file("answer_tokens.js"), _file("chat.js")]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.from_string(_file("chat.html")).render(
        styles=styles, scripts=scripts, needs_key=needs_key
    )
    headers = {
        "content-security-policy": _policy(styles, scripts),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    return ChatPage(html, headers)


def _policy(styles: list[str], scripts: list[str]) -> str:
    """Returns a policy that allows these styles and scripts, and requests to this server."""
    allowed = {
        "default-src": "'none'",
        "style-src": " ".join(map(_hash, styles)),
        "script-src": " ".join(map(_hash, scripts)),
        "connect-src": "'self'",
        "img-src": "data:",  # the icon, which browsers would otherwise ask the server for
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        # Text can only become text: no script may write HTML.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _file(name: str) -> str:
    return files("emsjax.serve").joinpath(name).read_text(encoding="utf-8")
