"""Which tools a chat may or must call: the fields `tools`, `tool_choice`, `parallel_tool_calls`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emsjax.errors import UserError, short
from emsjax.requests.called_tools import NO_ARGUMENTS, CalledTools


@dataclass(frozen=True)
class ToolChoice:
    """What a body says about calls of tools.

    Attributes:
      reads: whether calls are read from the text.
      several: whether an answer may have more than one.
      must: what the text must be; None if whether a tool is called is up to the model.
      named: whether one tool was named, which must be called.
    """

    reads: bool = False
    several: bool = True
    must: CalledTools | None = None
    named: bool = False


NO_TOOLS = ToolChoice()


def take_tool_choice(given: dict[str, Any]) -> ToolChoice:
    """Removes the fields about calls, except `tools`, which the template reads.

    Raises:
      UserError: one of them is not of its form, or names a tool that there is not.
    """
    choice, tools = given.pop("tool_choice", "auto"), given.get("tools") or []
    several = given.pop("parallel_tool_calls", True)
    if not isinstance(several, bool):
        raise UserError(f"parallel_tool_calls={short(several)} must be true or false")
    if choice == "none":
        return NO_TOOLS
    if choice == "auto":
        return ToolChoice(reads=bool(tools), several=several)
    schemas = _schemas(tools)
    if choice == "required":
        if not schemas:
            raise UserError("tool_choice=required needs tools; give them, or leave it out")
        return ToolChoice(True, several, CalledTools(tools=schemas, several=several))
    name = _name_in(choice)
    if name is None:
        raise UserError(
            f"tool_choice={short(choice)} is not known; give none, auto, required, or "
            '{"type": "function", "function": {"name": …}}'
        )
    chosen = tuple(each for each in schemas if each[0] == name)
    if not chosen:
        raise UserError(f"tool_choice names {short(name)}, which is not one of tools; add it there")
    return ToolChoice(True, False, CalledTools(tools=chosen, several=False), named=True)


def _name_in(choice: Any) -> str | None:
    """Returns the tool that a choice names; None if it has another form."""
    if not isinstance(choice, Mapping) or choice.get("type") != "function":
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def _schemas(tools: Any) -> tuple[tuple[str, str], ...]:
    """Returns the name of each tool, and the schema of its arguments as text."""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise UserError(f"tools={short(tools)} must be a list of JSON schemas")
    return tuple(map(_schema, tools))


def _schema(tool: Any) -> tuple[str, str]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise UserError(
            f"the tool {short(tool)} has no name; a tool_choice that asks for a call needs "
            '{"type": "function", "function": {"name": …, "parameters": …}}'
        )
    schema = function.get("parameters")
    if not schema or schema == {"type": "object", "properties": {}}:
        return name, NO_ARGUMENTS
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise UserError(
            f"the parameters of the tool {short(name)} are {short(schema)}; give a JSON schema of "
            "type object"
        )
    return name, json.dumps(schema, allow_nan=False)
