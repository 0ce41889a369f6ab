"""The program: `emsjax COMMAND`, or `python -m emsjax COMMAND`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from emsjax.cli import command
from emsjax.errors import UserError
from emsjax.version import __version__

# The module of each command and what the command does. A module is imported only when its command
# is called.
COMMANDS = {
    "generate": ("emsjax.generate.__main__", "Generate text for a batch of prompts."),
    "serve": ("emsjax.serve.__main__", "Serve a model to clients of the OpenAI API."),
    "bench": ("emsjax.bench.__main__", "Compare methods and drafters on your hardware."),
    "plan": ("emsjax.plan.__main__", "Forecast memory and speed on a device you do not have."),
    "train": ("emsjax.train.__main__", "Train a draft for a model."),
    "convert": ("emsjax.convert", "Convert a model to a checkpoint that loads fast."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status, see `emsjax.cli.command`.

    Args:
      arguments: the command and its arguments; `sys.argv[1:]` by default.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in COMMANDS:
        module, _ = COMMANDS[name]
        status: int = import_module(module).main(rest)
        return status
    return command.run(lambda: _without_command(name))


def _without_command(word: str) -> int:
    """Answers a call whose first word is no command; empty if there is no word at all."""
    if word in ("--help", "-h"):
        print(_usage())
        return 0
    if word == "--version":
        print(f"emsjax {__version__}")
        return 0
    if word.startswith("-"):
        raise UserError(
            f"{word[:40]} needs a command before it, as in `{command.program_name()} generate "
            f"{word[:40]}`; see --help."
        )
    said = f"{word[:40]!r} is no command" if word else "no command is given"
    raise UserError(f"{said}; choose from {', '.join(COMMANDS)}, or see --help.")


def _usage() -> str:
    commands = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    program = command.program_name()
    return "\n".join(
        [
            f"Usage: {program} COMMAND [OPTIONS]",
            "",
            "Batched text generation in JAX with speculative decoding.",
            "",
            "Commands:",
            *commands,
            "",
            "Options:",
            "  --version  Print the version and exit.",
            "  --help     Print this help and exit.",
            "",
            f"`{program} COMMAND --help` lists a command's options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
