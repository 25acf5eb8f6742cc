"""The one exception that a user may cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class RcdeployError(Exception):
    """Something that the user can put right: bad input, a missing file, a full disk.

    The command line shows it in a panel and exits with 2.

    Args:
        message: what is wrong, and where.
        fix: what to do next.
        errors: the single problems, when there are several: "cache.seed: the cache was made with 3,
            the recipe asks for 4".
    """

    message: str
    fix: str | None
    errors: tuple[str, ...]

    def __init__(self, message: str, *, fix: str | None = None, errors: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.errors = tuple(errors)

    @property
    def problem(self) -> str:
        """The message and a bullet for each of the errors, without the fix."""
        return "\n".join([self.message, *(f"  • {error}" for error in self.errors)])

    def __str__(self) -> str:
        return self.problem if self.fix is None else f"{self.problem}\n{self.fix}"

    def to_json(self) -> dict[str, Any]:
        """The error as data, for another process; `from_json` reads it."""
        return {"message": self.message, "fix": self.fix, "errors": list(self.errors)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RcdeployError:
        return cls(str(data["message"]), fix=data.get("fix"), errors=[str(error) for error in data.get("errors", ())])
