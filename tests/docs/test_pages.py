"""Every command on a page of the documentation runs, in the order of the page, in a folder of its own.

What the fences mean: ``bash`` is run as it stands; ``console`` is run where a line begins with "$ ", and every other
line must stand in its output; a block with a ``title`` is a file of that name; other ``python`` blocks are programs.
Trainings are made small by overrides, and ``make`` is asked only what it would do: the rest of the tests does it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.pages

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NEEDS = {
    "docs/steps/harness.md": ("lm_eval", "lm-evaluation-harness is not installed: pip install isodistill[lm-eval]")
}
"""Page -> a module that its commands import, and why they are skipped without it."""

FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TRAINS = re.compile(r"isodistill (?:compare|demo|run|train)\b|own_data\.py|prontoqa\.py|traces\.py --seeds 0")
SMALL = (
    " --set student=tiny --set train.steps=2 --set evaluate.max_new_tokens=8 --set evaluate.max_sets=4"
    " --set isomers.n_sets=60"
)
LAB = re.compile(r"isodistill\.lab\b|lab\.py --runs 1")
SMALL_LAB = " --set train.steps=2 --set train.rows=1 --set task.test_problems=5"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title (empty without one) and its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*(part or "" for part in found)) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def commands(block: Block) -> list[str]:
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        return [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def in_small(command: str) -> str:
    command = LAB.sub(lambda found: found[0] + SMALL_LAB, command.replace("studies/lab.py", "studies/lab.py --runs 1"))
    command = command.replace("studies/drift.py", "studies/drift.py --runs 0")  # writes the tables from the records
    command = command.replace("studies/drift_stages.py", "studies/drift_stages.py --runs 0")
    command = command.replace("studies/flexkd.py", "studies/flexkd.py --seeds")  # none: the tables from the records
    command = command.replace("studies/prada.py", "studies/prada.py --runs 0")
    command = command.replace("flexkd_classifier.py", "flexkd_classifier.py --steps 2")
    command = command.replace("studies/ecif.py", "studies/ecif.py --runs 0")
    command = re.sub(r"studies/vcrd(_planted|_code)?\.py", r"\g<0> --runs 0", command)
    command = command.replace("studies/four_benchmarks.py", "studies/four_benchmarks.py --runs 0")
    command = command.replace("studies/traces.py", "studies/traces.py --seeds 0")
    if command.startswith("make "):
        return command.replace("make ", f"make --dry-run -C {ROOT} ", 1)
    # A teacher with the tokenizer of the real student has the tokenizer of no other.
    small = SMALL.replace(" --set student=tiny", "") if "flexkd.yaml" in command else SMALL
    return TRAINS.sub(lambda found: found[0] + small, command)  # before the page's own overrides, which so win


def environment() -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": ".",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader has who stands in a checkout: the examples, the studies and the environment."""
    for name in ("examples", "studies", "docs/results"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    return tmp_path


def run(command: str, folder: Path, env: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of a line of bash; a plain ``isodistill ...`` forks from a process that has its imports."""
    if command.startswith("isodistill ") and not re.search("[|<>;&*`(]", command):
        arguments = shlex.split(re.sub(r"\$(\w+)", lambda name: env[name[1]], command))
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(Path(__file__).parent))  # where the forked process looks for it, too
            from forked import isodistill

            return isodistill(arguments, folder, env)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def run_page(page: Path, folder: Path, env: dict[str, str]) -> None:
    for block in blocks(page):
        if block.title:
            (folder / block.title).parent.mkdir(exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")
            continue
        if block.language not in ("bash", "console"):
            continue
        shown = [line for line in block.text.splitlines() if block.language == "console" and not line.startswith("$ ")]
        output, fails = "", any(line.startswith("error:") for line in shown)
        for command in commands(block):
            code, printed = run(in_small(command), folder, env)
            assert bool(code) == fails, f"`{command}` ended with {code}:\n{printed[-3000:]}"
            output += printed
        for line in shown:
            assert line in output, f"the page shows {line!r}, but the output was:\n{output[-3000:]}"


def needs_real_data(page: Path) -> bool:
    return any("ISODISTILL_DATA" in command for block in blocks(page) for command in commands(block))


@pytest.mark.parametrize("name", [n for n, p in zip(NAMES, PAGES, strict=True) if not needs_real_data(p)])
def test_the_commands_of_a_page_run(name: str, folder: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name][0], reason=NEEDS[name][1])
    run_page(ROOT / name, folder, environment())


@pytest.mark.real_data
@pytest.mark.parametrize("name", [n for n, p in zip(NAMES, PAGES, strict=True) if needs_real_data(p)])
def test_the_commands_of_a_page_run_on_real_data(name: str, folder: Path, real_data: Path) -> None:
    run_page(ROOT / name, folder, environment() | {"ISODISTILL_DATA": str(real_data)})


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "program"),
    [
        (name, block.text)
        for name, page in zip(NAMES, PAGES, strict=True)
        for block in blocks(page)
        if block.language == "python" and not block.title
    ],
    ids=lambda value: value if value.endswith(".md") else "program",
)
def test_the_programs_of_a_page_run(name: str, program: str, folder: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name][0], reason=NEEDS[name][1])
    (folder / "program.py").write_text(program, encoding="utf-8")
    code, printed = run("python program.py", folder, environment())
    assert code == 0, printed[-3000:]


def test_no_command_hides_from_these_tests() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("\n```") == 2 * len(blocks(page)), f"{page.name} has a fence that is not read here"
        assert not re.search(r"^ +```", text, re.MULTILINE), f"{page.name} has an indented fence"
        assert {b.language for b in blocks(page)} <= {"bash", "console", "json", "python", "text", "yaml"}, page.name


def test_every_example_is_run_by_a_page() -> None:
    ran = "\n".join(command for page in PAGES for block in blocks(page) for command in commands(block))
    for example in sorted((ROOT / "examples").iterdir()):
        if example.suffix in (".yaml", ".py"):
            assert f"examples/{example.name}" in ran, f"no page runs examples/{example.name}"


def test_a_file_shown_on_a_page_is_the_file_of_the_checkout() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.title.startswith("examples/"):
                lines = (ROOT / block.title).read_text(encoding="utf-8").splitlines(keepends=True)
                assert "".join(line for line in lines if not line.startswith("#")) == block.text


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    code, printed = run(f"mkdocs build --strict --site-dir {tmp_path / 'site'}", ROOT, environment())
    assert code == 0, printed
    assert (tmp_path / "site" / "index.html").is_file()


def test_links_of_the_front_pages_lead_somewhere() -> None:
    for page in PAGES[:2]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (ROOT / target).exists(), f"{page.name} links to {target}"
