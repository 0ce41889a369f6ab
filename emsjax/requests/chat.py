"""How conversations are rendered with a chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emsjax.errors import UserError, short

# Arguments of `apply_chat_template` that are not variables of a template.
_RESERVED = frozenset(
    {
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tools",
        "conversation",
        "messages",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)


@dataclass(frozen=True)
class ChatOptions:
    """How a conversation is rendered.

    Attributes:
      chat_template: a template in Jinja to use instead of the model's.
      add_generation_prompt: whether the prompt ends with the beginning of the model's answer.
      continue_final_message: whether the model continues the last message instead of answering.
      tools: JSON schemas of the functions that the model may call.
      chat_template_kwargs: further variables of the template, such as `enable_thinking`.

    Raises:
      UserError: a value has the wrong type, or two contradict each other.
    """

    chat_template: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("add_generation_prompt", "continue_final_message"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={short(getattr(self, name))} must be true or false")
        if self.continue_final_message and self.add_generation_prompt:
            raise UserError(
                "continue_final_message contradicts add_generation_prompt; set "
                "add_generation_prompt=False"
            )
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise UserError(
                f"chat_template={short(self.chat_template)} must be the text of a template"
            )
        self._check_tools()
        self._check_variables()

    def _check_tools(self) -> None:
        tools = self.tools
        if tools is None:
            return
        if not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools):
            raise UserError(f"tools={short(tools)} must be a list of JSON schemas (dictionaries)")

    def _check_variables(self) -> None:
        given = self.chat_template_kwargs
        if given is None:
            return
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise UserError(f"chat_template_kwargs={short(given)} must map names to values")
        reserved = sorted(_RESERVED & given.keys())
        if reserved:
            raise UserError(
                f"chat_template_kwargs has {reserved[0]!r}, which is not a variable of a template; "
                "leave it out, or give it to chat"
            )

    def arguments(self, template: str, origin: str) -> dict[str, Any]:
        """Returns the arguments of `apply_chat_template`.

        Args:
          template: the template that will be applied.
          origin: the model's name for messages.

        Raises:
          UserError: the template does not read the tools or a variable.
        """
        tools = [dict(tool) for tool in self.tools or ()]
        variables = dict(self.chat_template_kwargs or {})
        for name in [*(["tools"] if tools else []), *variables]:
            if name not in template:
                raise UserError(
                    f"the chat template of {origin} does not read {short(name)}; leave it out"
                )
        return {
            "chat_template": self.chat_template,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "tools": tools or None,
            **variables,
        }
