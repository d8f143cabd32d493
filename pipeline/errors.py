"""What is said to a person when something cannot go on. Imports nothing; everything may raise it."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    The text is one line: what is wrong, and what to do about it. The command prints it without a traceback
    and ends with `status`: 1, or 2 where the command line or the configuration is at fault.
    """

    def __init__(self, text: str, *, status: int = 1) -> None:
        super().__init__(" ".join(text.split()))
        self.status = status
