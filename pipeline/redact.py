"""Redaction: what of an environment and of a command line may leave user space (the house's rule on secrets).

Everything that shows, stores or sends a promise asks here first: encode, and the filter's columns. Imports
nothing of ours but what all may raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Final

from pipeline.errors import UserError

__all__ = ["MASK", "RedactError", "Redaction"]

MASK: Final = b"***"
"""What stands in place of a secret; its length says nothing of the secret's."""


class RedactError(UserError):
    """A pattern that cannot be used; the text names it."""


class Redaction:
    """The rules of one run.

    allow: names of environment variables whose values are shown; shell patterns such as LC_*. argv: regular
    expressions; what they match within one argument is masked. environment: False where the environment is
    switched off; the field is then nil, and not unsettled: nothing was promised.
    """

    def __init__(
        self, allow: Iterable[str] = (), argv: Sequence[str] = (), *, environment: bool = True
    ) -> None:
        self.environment = environment
        self._allow = re.compile("|".join(map(translate, allow)).encode() or b"(?!)")
        self._allows = lru_cache(4096)(self._allow.match)
        self.patterns = [_compiled(pattern) for pattern in argv]
        """What is masked on command lines; often nothing."""

    def variables(self, data: bytes) -> bytes:
        """An environment (NUL-terminated strings, the last one perhaps cut) with every value masked, unless
        allowed.

        NAME=value becomes NAME=***. A string with no `=` may be the rest of a secret: it is masked whole.
        An empty string stays.
        """
        return b"\0".join(map(self._variable, data.split(b"\0")))

    def arguments(self, data: bytes) -> bytes:
        """A command line (NUL-terminated strings) with what the patterns match masked; the same object if
        nothing did."""
        if not self.patterns:
            return data
        # surrogateescape: bytes that are not UTF-8 come through as they are, and a pattern may look past
        # them.
        old = data.decode("utf-8", "surrogateescape").split("\0")
        new = [self._argument(argument) for argument in old]
        return data if new == old else "\0".join(new).encode("utf-8", "surrogateescape")

    def _variable(self, entry: bytes) -> bytes:
        name, equals, _ = entry.partition(b"=")
        if not entry or (equals and self._allows(name)):
            return entry
        return name + equals + MASK if equals else MASK

    def _argument(self, text: str) -> str:
        for pattern in self.patterns:
            # An empty match has nothing to hide.
            text = pattern.sub(lambda match: "***" if match[0] else "", text)
        return text


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RedactError(f"redact.argv: {pattern!r} is no regular expression: {error}", status=2) from None
