"""What tests see of a program, in the jail."""

from __future__ import annotations

import subprocess
import sys

import pytest

from isodistill.sandbox import Trial, run_tests
from isodistill.sandbox.tester import count_tests

pytestmark = pytest.mark.usefixtures("sandbox")


CASES = {
    "sorts in place": ("def f(a):\n    a.sort()", "x = [3, 1]\nf(x)\nassert x == [1, 3]"),
    "fills in place": ("def f(d):\n    d['b'] = 1", "d = {}\nf(d)\nassert d == {'b': 1}"),
    "objects": ("class P:\n    def __init__(s, a): s.a = a\ndef f(p): return p.a", "assert f(P(7)) == 7"),
    "attributes": (
        "class N:\n    def __init__(s, v): s.v, s.left = v, None\ndef depth(n): return n and 1 + (depth(n.left) or 0)",
        "a = N(1)\na.left = N(2)\na.left.left = N(3)\nassert depth(a) == 3\nassert a.left.v == 2",
    ),
    "types": ("def f(a, t): return [x for x in a if type(x) is t]", "assert f((1, 'a', 2.0), int) == [1]"),
    "generator": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
    "named like a built-in": ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
    "built-ins stay ours": ("def len(x): return 9\ndef f(x): return [1]", "assert len(f(1)) == 1"),
    "raises what it should": (
        "def f(): raise KeyError('x')",
        "try:\n    f()\n    ok = False\nexcept KeyError:\n    ok = True\nassert ok",
    ),
    "all arguments": ("f = lambda *a, b=0: (a, b)", "assert f(1, 2, b={3}) == ((1, 2), {3})"),
    "forgotten imports": ("def f(): return math.sqrt(4), List[int]", "assert list(f())[0] == 2.0"),
    "a function that checks": (
        "def f(x): return 0.1 + 0.2",
        "import math\ndef check(g):\n    assert math.isclose(g(1), 0.3)\ncheck(f)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_tests_work_as_if_the_program_stood_beside_them(name: str) -> None:
    trial = run_tests(*CASES[name])
    assert trial.ok, trial


def test_every_test_counts_and_the_first_failure_is_told() -> None:
    tests = "assert f(1) == 1\nassert f(2) == 2\nassert f(3) == 4\n"
    assert run_tests("def f(x):\n    return x if x != 2 else 1 / 0", tests) == Trial(1, 3, "raises ZeroDivisionError")
    assert run_tests("def f(x): return 4", tests) == Trial(1, 3, "a test does not hold")
    assert run_tests("def g(x): return x", tests) == Trial(0, 3, "raises NameError")
    assert run_tests("def f(x: return x", tests) == Trial(0, 3, "raises SyntaxError")


def test_set_up_stands_before_the_program_or_is_finished_by_it() -> None:
    setup = "def twice(x):\n    return 2 * x\ndef f(x):\n    '''Four times x.'''\n"
    tests = "assert f(1) == 4\n"
    assert run_tests("    return twice(twice(x))", tests, setup=setup).ok
    assert run_tests("def f(x):\n    return twice(twice(x))", tests, setup=setup).ok
    assert run_tests("pass", tests, setup=setup) == Trial(0, 1, "a test does not hold")


def test_a_program_finds_the_same_order_of_hashes_every_time() -> None:
    joined = "''.join({'x', 'y', 'z', 'w', 'v'})"
    fixed = subprocess.run(
        [sys.executable, "-c", f"print({joined})"],
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run_tests(f"def f(): return {joined}", f"assert f() == {fixed.stdout.strip()!r}").ok


def test_tests_are_asserts_and_calls_at_the_outermost_level() -> None:
    assert count_tests("import math\ndef check(f):\n    assert f(1)\ncheck(f)\nassert f(2)\nx = f(3)\n") == 2
    with pytest.raises(SyntaxError):
        count_tests("assert (")
