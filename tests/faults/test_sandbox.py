"""Hostile and broken programs: nothing gets out of the jail, nothing survives it, every verdict has its reason."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isodistill.data.tasks import load_task
from isodistill.evaluation import verify
from isodistill.sandbox import Limits, Trial, run_tests

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("sandbox"),
]

SHORT = Limits(seconds=1, wall=2, memory_mb=256, output_kb=16, scratch_mb=2)
TEST = "assert f(1) == 2\n"


@pytest.fixture(autouse=True, scope="module")
def _own_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jails of this module lie in a folder of their own: other tests may have jails at the same time."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("jails"))
        patch.setenv("TMPDIR", place)
        patch.setattr(tempfile, "tempdir", place)
        yield


def jails() -> list[str]:
    """Processes of jails of this module that are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"{tempfile.gettempdir()}/isodistill-jail-" in command and "isodistill.sandbox.inside" in command:
                found.append(f"{entry.name}: {command[:200]}")
    return found


def tried(program: str, tests: str = TEST, limits: Limits = SHORT) -> Trial:
    trial = run_tests(program, tests, limits=limits)
    assert not jails()
    return trial


def test_a_right_program_passes_with_threads_scratch_files_and_the_standard_library() -> None:
    program = """
import hashlib, os, threading
def f(x):
    found = []
    thread = threading.Thread(target=lambda: found.append(x + 1))
    thread.start()
    thread.join()
    with open("notes.txt", "w") as file:
        file.write(hashlib.md5(b"x").hexdigest())
    assert os.listdir(".") == ["notes.txt"]
    return found[0]
"""
    assert tried(program) == Trial(1, 1, None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param("import os; os.fork()", "raises OSError", id="fork"),
        pytest.param("import subprocess; subprocess.run(['/bin/sh', '-c', 'id'])", "raises OSError", id="subprocess"),
        pytest.param("import os; os.execv('/bin/sh', ['sh'])", "raises OSError", id="exec"),
        pytest.param("import socket; socket.socket()", "raises OSError", id="socket"),
        pytest.param("import socket; socket.socketpair()", "raises OSError", id="socketpair"),
        pytest.param("import os; os.kill(1, 9)", "raises OSError", id="kill"),
        pytest.param("import os; os.setuid(0)", "raises OSError", id="setuid"),
        pytest.param("import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "raises OSError", id="limits"),
        pytest.param("open('/etc/passwd')", "raises FileNotFoundError", id="read /etc"),
        pytest.param("open('/proc/1/mem')", "raises FileNotFoundError", id="read /proc"),
        pytest.param("open('/f', 'w')", "raises OSError", id="write the root"),
        pytest.param("import os; open(os.__file__, 'w')", "raises OSError", id="write the library"),
        pytest.param("import os; os.chmod('/', 0o777)", "raises OSError", id="chmod"),
        pytest.param("import numpy", "raises ModuleNotFoundError", id="site-packages"),
        pytest.param("while True: pass", "ran out of time", id="endless loop"),
        pytest.param("import time; time.sleep(100)", "ran out of time", id="sleep"),
        pytest.param("[0] * 10**10", "ran out of memory", id="memory at once"),
        pytest.param("a = []\n    while True: a.append(bytearray(10**6))", "ran out of memory", id="memory by and by"),
        pytest.param("while True: print('x' * 1000)", "printed too much", id="endless output"),
        pytest.param("file = open('f', 'wb')\n    while True: file.write(bytes(10**5))", "raises OSError", id="disk"),
        pytest.param("return 'x' * 10**7", "gave back too much", id="endless answer"),
        pytest.param("return f(x)", "raises RecursionError", id="recursion"),
        pytest.param("import ctypes; ctypes.string_at(0)", "crashes", id="segmentation fault"),
        pytest.param("import sys; sys.exit(0)", "raises SystemExit", id="exit"),
        pytest.param("import os; os._exit(0)", "ended before its tests", id="exit at once"),
        pytest.param("import os; os.abort()", "crashes", id="abort"),
        pytest.param("return", "a test does not hold", id="nothing"),
    ],
)
def test_what_a_function_may_not_do_fails_with_its_reason(body: str, reason: str) -> None:
    assert tried(f"def f(x):\n    {body}\n    return 2\n") == Trial(0, 1, reason)


def test_a_bomb_of_threads_ends_by_its_limits() -> None:
    bomb = "while True: threading.Thread(target=time.sleep, args=(99,)).start()"
    assert not tried(f"import threading, time\ndef f(x):\n    {bomb}").ok


VERDICT = '{"passed": 1, "tests": 1, "reason": null}'
TAMPERING = {
    "equals everything": """
class Same:
    def __eq__(self, other): return True
def f(x): return Same()
""",
    "prints a verdict and ends": f"""
import os
print('{VERDICT}', flush=True)
os._exit(0)
""",
    "writes a verdict to every descriptor": f"""
import os
def f(x):
    for descriptor in reversed(range(64)):
        try: os.write(descriptor, b'{VERDICT}\\n')
        except OSError: pass
    return 3
""",
    "changes the built-ins": """
import builtins
builtins.AssertionError = Exception
builtins.abs = builtins.len = builtins.isinstance = lambda *a: True
def f(x): return 3
""",
    "changes the modules": """
import sys
sys.settrace(lambda *a: None)
sys.modules["ast"] = sys.modules["isodistill.sandbox.tester"] = None
def f(x): return 3
""",
    "ends by atexit": """
import atexit, os
atexit.register(lambda: os._exit(0))
def f(x): raise SystemExit(0)
""",
    "closes the channels": """
import os
for descriptor in range(3, 64):
    try: os.close(descriptor)
    except OSError: pass
def f(x): return 2
""",
    "names its own error": """
import json, os
def f(x):
    message = json.dumps({"raises": "none; " * 30000}).encode()
    os.write(4, len(message).to_bytes(4, "big") + message)
""",
    "plays the jail": """
import json, os
message = json.dumps({"hole": "none of yours", "unsafe": "x", "names": {"f": 2}}).encode()
os.write(4, len(message).to_bytes(4, "big") + message)
def f(x): return 3
""",
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_never_passes_and_never_stops_the_run(name: str) -> None:
    trial = tried(TAMPERING[name])
    assert not trial.ok
    assert trial.reason is not None
    assert len(trial.reason) < 40


def test_a_program_cannot_read_the_tests_that_judge_it() -> None:
    program = """
import gc, sys, re
def everything():
    texts = [o for o in gc.get_objects() if isinstance(o, str)]
    frame = sys._getframe()
    while frame:
        texts += [str(v) for v in frame.f_locals.values()] + [str(v) for v in frame.f_globals.values()]
        frame = frame.f_back
    for o in gc.get_objects():
        if isinstance(o, (dict, list, tuple)):
            texts.append(repr(o)[:100000])
    return " ".join(texts)
def f(x):
    found = re.search("assert f.1. == (\\\\d+)", everything())
    return int(found[1]) if found else None
"""
    assert tried(program, "assert f(1) == 918273645\n") == Trial(0, 1, "a test does not hold")


def test_nothing_of_this_process_is_in_the_jail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    (tmp_path / "secret.txt").write_text("secret")
    program = f"""
import os
def seen():
    return [os.environ.get("OPENAI_API_KEY"), os.path.exists({str(tmp_path)!r}), os.getcwd(), os.listdir("."),
            sorted(os.listdir("/")) == sorted(set(["tmp", os.__file__.split("/")[1]])), os.path.exists("/dev")]
"""
    assert tried(program, "assert seen() == [None, False, '/tmp', [], True, False]\n") == Trial(1, 1, None)


def test_no_connection_leaves_the_jail() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        connect = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert tried(f"import socket\ndef f(x):\n    {connect}\n    return 2\n") == Trial(0, 1, "raises OSError")
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_jail_dies_with_the_process_that_waits_for_it() -> None:
    script = (
        "from isodistill.sandbox import Limits, run_tests\n"
        "print('up', flush=True)\n"
        "run_tests('import time\\ntime.sleep(99)', 'assert f()', limits=Limits(wall=60))\n"
    )
    waiting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=dict(os.environ))
    assert waiting.stdout is not None
    waiting.stdout.readline()
    deadline = time.monotonic() + 20
    while not jails() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert jails()
    waiting.send_signal(signal.SIGKILL)
    waiting.wait()
    waiting.stdout.close()
    while jails() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not jails()


def test_several_jails_at_once_do_not_disturb_each_other() -> None:
    found: list[Trial] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(run_tests(f"def f(x): return {n}", f"assert f(1) == {n}")))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Trial(1, 1, None)] * 4


def test_where_no_namespace_can_be_made_nothing_is_run(tmp_path: Path) -> None:
    """A real machine without namespaces: one whose user may make none."""
    script = f"""
from isodistill.errors import UserError
from isodistill.sandbox import run_tests
try:
    run_tests("open({str(tmp_path / "ran")!r}, 'w')", "assert f()")
except UserError as error:
    print(error)
"""
    limited = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    try:
        done = subprocess.run(
            ["unshare", "-Ur", "sh", "-c", limited, "sh", sys.executable, "-c", script],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("the tool unshare is not here")
    assert "no sandbox can be made: unshare: " in done.stdout
    assert "Linux on x86_64" in done.stdout
    assert not (tmp_path / "ran").exists()


def test_the_verdict_of_an_answer_is_that_of_its_program() -> None:
    answer = "def f(x):\n    '''One more.'''\n# tests\nassert f(1) == 2\nassert f(2) == 3\n"
    assert verify("Sure!\n```python\ndef f(x):\n    return x + 1\n```\nIt adds one.", answer, "code") == "correct"
    assert verify("    return x + 1\n", answer, "code") == "correct"  # the body alone
    assert verify("```python\ndef f(x):\n    return 2\n```", answer, "code") == "wrong"
    assert verify("```python\ndef f(x):\n    return x +", answer, "code", finish="length") == "truncated"
    assert verify("```python\ndef f(x):\n    return x +", answer, "code") == "wrong"
    assert verify(" ", answer, "code") == "unparsed"


@pytest.mark.real_data
def test_every_reference_solution_passes(real_data: Path) -> None:
    rows = [row for name in ("humaneval", "mbpp") for row in load_task(name, real_data)]
    failed = [row.id for row in rows if verify(str(row.completion), str(row.answer), "code") != "correct"]
    assert failed == []
