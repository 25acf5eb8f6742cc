"""The one exception a user may cause."""

from __future__ import annotations


class RcdeployError(Exception):
    """Something the user can put right: bad input, a missing file, a full disk.

    message: what is wrong, and where. fix: what to do next. The command line shows both in a panel and exits with 2.
    """

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}\n{fix}")
        self.message, self.fix = message, fix
