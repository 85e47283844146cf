"""Errors of the command line itself; those of the engine are in ``pyds4.errors``."""

from __future__ import annotations


class CommandError(Exception):
    """Something outside is not as the command needs it. Exit status 1."""


class UsageError(CommandError):
    """Options that do not go together, or a value no command can use. Exit status 2."""


def one_line(error: BaseException) -> str:
    """The message of ``error`` without line breaks; its type when it has none."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return where + error.strerror
    text = "; ".join(part.strip() for part in str(error).splitlines() if part.strip())
    return text or type(error).__name__
