"""After how long another process counts as gone."""

import os

from emsjax.errors import UserError

VARIABLE = "EMSJAX_TIMEOUT_S"
_DEFAULT_S = 300.0


def patience_s() -> float:
    """Returns after how many seconds without a sign another process counts as gone.

    Raises:
      UserError: the environment variable that changes it is no number.
    """
    given = os.environ.get(VARIABLE, "")
    try:
        seconds = float(given or _DEFAULT_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UserError(f"{VARIABLE}={given} is no number of seconds; give one, such as 300.")
    return seconds
