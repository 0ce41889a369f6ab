"""Outputs that must be calls of tools, as models in the style of Hermes and Qwen write them."""

import json as json_
from dataclasses import dataclass

from emsjax.requests.json_schema import escape, schema_regex
from emsjax.requests.structured import StructuredOutputsParams

# The tags around a call, which is a JSON object.
BEGIN, END = "<tool_call>", "</tool_call>"
NO_ARGUMENTS = '{"type": "object", "additionalProperties": false}'


@dataclass(frozen=True)
class CalledTools(StructuredOutputsParams):
    """An output of calls and nothing else.

    Attributes:
      tools: the name of each tool, and the schema of its arguments as text.
      several: whether there may be more calls than one.
    """

    tools: tuple[tuple[str, str], ...] = ()
    several: bool = True

    def __post_init__(self) -> None:
        """Replaces the checks of the other kinds, none of which is given."""

    def regex_with(self, white: str) -> tuple[str, list[str]]:
        """Returns a regular expression, and the patterns of strings in it; see `schema_regex`.

        Args:
          white: the expression of white space between parts of JSON.

        Raises:
          UserError: a schema has no expression.
        """
        objects, patterns = [], []
        gap = f"(?:{white})"
        for name, schema in self.tools:
            arguments, more = schema_regex(schema, white)
            patterns += more
            name_of = f'"name"{gap}:{gap}{escape(json_.dumps(name, ensure_ascii=False))}'
            given = f'"arguments"{gap}:{gap}{arguments}'
            objects.append(rf"\{{{gap}{name_of}{gap},{gap}{given}{gap}\}}")
        call = f"{escape(BEGIN)}\n(?:{'|'.join(objects)})\n{escape(END)}"
        return (f"{call}(?:\n{call})*" if self.several else call), patterns
