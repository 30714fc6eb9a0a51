"""The one exception a user ever sees as a message."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: a wrong file, field, key or setting.

    The message names the file, field or key, what was expected, what was found and what to do next. The
    command line prints it without a traceback and exits with code 2.
    """
