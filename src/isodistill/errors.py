"""The one error that people see: what was wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["TeacherError", "UserError"]


class UserError(Exception):
    """Something the user can mend.

    The message is a full paragraph: what was wrong, where (file, line, column, tensor, step, domain) and what to do
    about it. The command line prints it alone, without a traceback; everything else that is raised is a defect of ours.
    """


class TeacherError(Exception):
    """A teacher did not answer one request; the message says what failed, never a key.

    ``retry`` tells whether asking again can help, and ``after`` how many seconds the server asked to wait first.
    """

    def __init__(self, message: str, *, retry: bool, after: float | None = None) -> None:
        super().__init__(message)
        self.retry = retry
        self.after = after
