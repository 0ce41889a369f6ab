"""Names options in messages that name parameters of the Python interface."""

import re
from collections.abc import Mapping


def name_options(message: str, options: Mapping[str, str]) -> str:
    """Replaces names of parameters by those of the options that set them.

    A name that is an ordinary word, such as `seed`, is replaced only in `seed=3`.

    Args:
      message: a message, which may quote what the user gave.
      options: the option of each parameter, such as "max_tokens": "--max-tokens".
    """
    if not options:
        return message
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))

    def option(found: re.Match[str]) -> str:
        name, value = found[2], found[3]
        if found[1] or not (value or "_" in name):
            return found[0]  # something quoted, or an ordinary word
        return options[name] + (" " if value else "")

    # What is in quotes, or a part of a path, is the user's own text.
    quoted = r"'[^']*'|\"[^\"]*\"|`[^`]*`"
    pattern = rf"({quoted})|(?<![\w./\\-])({names})(?:(=)|(?![\w/\\]|\.\w))"
    return re.sub(pattern, option, message)
