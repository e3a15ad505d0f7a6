"""The one error that people see: what was wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Something the user can mend.

    The message is a full paragraph: what was wrong, where (file, line, column, tensor, step, domain) and what to do
    about it. The command line prints it alone, without a traceback; everything else that is raised is a defect of ours.
    """
