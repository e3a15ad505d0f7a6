from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from isodistill.errors import UserError
from isodistill.evaluation.symbolic import SymbolicChecker

# Says whether the two are the same text; hangs on "hang", dawdles on "slow", dies on "die", writes its id for "pid".
WORKER = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    answer, gold = json.loads(line)
    if answer == "hang":
        time.sleep(600)
    if answer == "slow":
        time.sleep(0.3)
    if answer == "die":
        os._exit(3)
    if answer == "pid":
        open(gold, "w").write(str(os.getpid()))
    print(json.dumps(answer == gold), flush=True)
"""


@pytest.fixture
def checker() -> Iterator[SymbolicChecker]:
    checker = SymbolicChecker(limit_s=0.5, command=[sys.executable, "-c", WORKER])
    yield checker
    checker.close()


def process_id(checker: SymbolicChecker, path: str) -> int:
    assert checker.equal("pid", path) is False
    with open(path) as file:
        return int(file.read())


def alive(pid: int) -> bool:
    """Also true for a zombie, which a parent has not waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_worker_answers_many_comparisons(checker: SymbolicChecker, tmp_path) -> None:
    pids = {process_id(checker, str(tmp_path / name)) for name in "abc"}
    assert len(pids) == 1
    assert checker.equal("x", "x") is True
    assert checker.equal("x", "y") is False
    assert checker.timeouts == 0


@pytest.mark.skipif(os.name != "posix", reason="looks at process ids")
@pytest.mark.parametrize("failure", ["hang", "die"])
def test_a_worker_that_hangs_or_dies_is_replaced_and_counted(checker: SymbolicChecker, tmp_path, failure: str) -> None:
    first = process_id(checker, str(tmp_path / "first"))
    assert checker.equal(failure, "") is None
    assert not alive(first)
    assert checker.timeouts == 1
    assert checker.equal("x", "x") is True
    assert process_id(checker, str(tmp_path / "second")) != first
    assert checker.timeouts == 1


@pytest.mark.skipif(os.name != "posix", reason="uses a timer signal")
def test_an_interrupted_comparison_does_not_answer_the_next_one(checker: SymbolicChecker) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    assert checker.equal("x", "x") is True
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            checker.equal("slow", "slow")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert checker.equal("x", "y") is False


@pytest.mark.skipif(os.name != "posix", reason="looks at process ids")
def test_close_ends_the_worker_and_the_next_comparison_starts_another(checker: SymbolicChecker, tmp_path) -> None:
    first = process_id(checker, str(tmp_path / "first"))
    checker.close()
    checker.close()
    assert not alive(first)
    assert checker.equal("x", "x") is True


def test_a_worker_killed_between_comparisons_costs_one_verdict(checker: SymbolicChecker, tmp_path) -> None:
    pid = process_id(checker, str(tmp_path / "pid"))
    os.kill(pid, 9)
    time.sleep(0.1)
    assert checker.equal("x", "x") is None
    assert checker.equal("x", "x") is True


def test_a_worker_that_cannot_start_is_an_error_for_people() -> None:
    with pytest.raises(UserError, match="pip install math-verify"):
        SymbolicChecker(command=[sys.executable, "-c", "import no_such_module"]).equal("1", "1")


@pytest.mark.skipif(os.name != "posix", reason="looks at process ids")
def test_the_worker_ends_with_its_program(tmp_path) -> None:
    program = textwrap.dedent(f"""
        import sys
        from isodistill.evaluation.symbolic import SymbolicChecker
        checker = SymbolicChecker(command=[sys.executable, "-c", {WORKER!r}])
        checker.equal("pid", sys.argv[1])
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "pid")], check=True, env=environment, timeout=60)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_math_verify_itself_and_a_factorial_that_hangs() -> None:
    checker = SymbolicChecker(limit_s=2.0)
    try:
        assert checker.equal("2\\sqrt{3}", "\\sqrt{12}") is True
        assert checker.equal("2\\sqrt{3}", "\\sqrt{13}") is False
        assert checker.equal("\\frac{", "5") is False
        assert checker.equal("(10^{10})!", "5") is None
        assert checker.timeouts == 1
        assert checker.equal("x+1", "1+x") is True
    finally:
        checker.close()


def test_importing_the_room_starts_nothing_and_loads_no_torch_or_sympy() -> None:
    program = "import sys, isodistill.evaluation; print({'torch', 'sympy', 'math_verify'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "set()"
