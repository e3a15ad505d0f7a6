"""Groups of gloo processes that train what they are asked; started once, as importing takes longer than training."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .worker import write

WORKER = Path(__file__).with_name("worker.py")
LIMIT = 300.0  # seconds for a job, start included


def launch(folder: Path, name: str, processes: int, **settings: Any) -> list[dict[str, torch.Tensor]]:
    """Train with the settings (see ``worker.train``) into ``folder / name``; the trained tensors of every process.

    Raises:
        AssertionError: a process failed, with what it said.
    """
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"output_dir": str(folder / name), "seed": 3, **settings}))
    group = _group(processes)
    try:
        group.train(file)
    except AssertionError:
        _group.cache_clear()
        atexit.unregister(group.end)
        group.end()
        raise
    return [load_file(folder / f"weights-{name}-{rank}.safetensors") for rank in range(processes)]


@functools.cache
def _group(processes: int) -> Group:
    group = Group(processes)
    atexit.register(group.end)
    return group


@dataclass
class Group:
    """Processes of one group and the folder of their jobs."""

    processes: int
    jobs: Path = field(default_factory=lambda: Path(tempfile.mkdtemp()))
    number: int = 0

    def __post_init__(self) -> None:
        several = ["--multi_gpu"] if self.processes > 1 else ["--cpu"]
        launcher = [
            *(
                sys.executable,
                "-m",
                "accelerate.commands.launch",
                *several,
                "--num_machines=1",
                "--main_process_port=0",
            ),
            *(f"--num_processes={self.processes}", "--mixed_precision=no", "--dynamo_backend=no"),
        ]
        self.log = (self.jobs / "log").open("w")
        self.running = subprocess.Popen(
            [*launcher, str(WORKER), str(self.jobs), str(os.getpid())],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
            stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def train(self, settings: Path) -> None:
        """Hand the job over and wait until every process is through with it."""
        write(self.jobs / str(self.number), str(settings))
        told, began = {}, time.monotonic()
        while len(told) < self.processes:
            for rank in range(self.processes):
                if (file := self.jobs / f"{self.number}-{rank}").exists():
                    told[rank] = file.read_text()
            failed = [text for text in told.values() if text]
            assert not failed, failed[0]
            assert self.running.poll() is None, (self.jobs / "log").read_text()[-3000:]
            assert time.monotonic() - began < LIMIT, f"nothing after {LIMIT} s: {settings}"
            time.sleep(0.02)
        self.number += 1

    def end(self) -> None:
        """Let the processes go; those that hang are killed."""
        write(self.jobs / str(self.number), "")
        try:
            self.running.wait(10)
        except subprocess.TimeoutExpired:
            self.running.kill()
            self.running.wait()
        self.log.close()
        shutil.rmtree(self.jobs)
