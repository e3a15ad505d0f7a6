"""Answers that are programs: found in the output, run in the sandbox, judged by the tests of the problem.

The gold ``answer`` of a row of type code is a Python program of tests. Where it has a line ``# tests``, what stands
above it is set-up that the student's program may count on (imports, helpers, the head of the function to be completed),
and the tests stand below:

    def shout(text):
        \"\"\"The text in capitals.\"\"\"
    # tests
    assert shout("a") == "A"
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.sandbox import Trial, run_tests, why_no_sandbox
from isodistill.sandbox.tester import count_tests

__all__ = ["TESTS_LINE", "need_sandbox", "program_in", "setup_and_tests", "try_program"]

TESTS_LINE = "# tests"

_FENCED = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.I)
_DEFINES = re.compile(r"^\s*(?:async\s+def|def|class)\s", re.MULTILINE)


def need_sandbox(rows: Iterable[Row]) -> None:
    """Stop, with the reason, where programs would have to be run to judge answers to these rows and cannot be.

    Raises:
        UserError: a row is of type code, and no sandbox can be made on this machine.
    """
    if any(row.answer_type == "code" for row in rows) and (reason := why_no_sandbox()) is not None:
        raise UserError(reason)


def program_in(output: str) -> str | None:
    """The program in an output: the last fenced block that defines a function or class, else the last block; the whole
    output where there is no block. None where that is blank.
    """
    blocks: list[str] = _FENCED.findall(output) or [output]
    program = next((block for block in reversed(blocks) if _DEFINES.search(block)), blocks[-1])
    return program if program.strip() else None


def setup_and_tests(answer: str) -> tuple[str, str]:
    """Set-up and tests of a gold answer.

    Raises:
        ValueError: it is no Python, or has no test.
    """
    lines = answer.splitlines()
    mark = lines.index(TESTS_LINE) if TESTS_LINE in lines else -1
    setup, tests = "\n".join(lines[: max(mark, 0)]), "\n".join(lines[mark + 1 :])
    try:
        n_tests = count_tests(tests)
    except SyntaxError as error:
        raise ValueError(f"holds tests that are no Python ({error})") from None
    if not n_tests:
        raise ValueError("holds no test: no assert and no call at the outermost level")
    return setup, tests


def try_program(output: str, answer: str) -> Trial | None:
    """How the program in an output fares in the tests of ``answer``; None where the output holds no program.

    ``passed / tests`` is the share of tests that hold.

    Raises:
        UserError: no sandbox can be made on this machine.
        ValueError: the answer is no program of tests.
    """
    setup, tests = setup_and_tests(answer)
    program = program_in(output)
    return None if program is None else run_tests(program, tests, setup=setup)
