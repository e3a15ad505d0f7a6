"""Teaching whose client is killed several times: what the tests against a stub and against a real server share."""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEY = "secret-key-that-appears-nowhere"


def teach_killed(folder: Path, rows: Sequence[Mapping[str, Any]], teach: Mapping[str, Any], kills: int) -> str:
    """``isodistill teach`` in ``folder``, killed so often at moments spread over the work, and at last to its end.

    The caller sets OPENAI_API_KEY to ``KEY``, which is looked for in everything that the run leaves.

    Returns:
        What all clients printed.
    """
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"problems": "rows.jsonl", "max_refused": 0.0, "teach": teach}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    if (here := str(Path(__file__).parent)) not in sys.path:
        sys.path.insert(0, here)
    from mortal import teach as client_of

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isodistill.pipeline"])
    store, rng, n = folder / "run" / "traces.jsonl", random.Random(0), len(rows)
    for kill in range(kills):
        goal = n * (kill + 1) // (kills + 1) + rng.randrange(n // 20)
        client = context.Process(target=client_of, args=(folder,))
        client.start()
        while _answered(store) < goal:
            assert client.is_alive(), (folder / "output.txt").read_text()
            time.sleep(0.002)
        client.kill()
        client.join()
    assert _answered(store) < n
    client = context.Process(target=client_of, args=(folder,))
    client.start()
    client.join()
    printed = (folder / "output.txt").read_text()
    assert client.exitcode == 0, printed
    left = [path for path in (folder / "run").rglob("*") if path.is_file()]
    assert KEY.encode() not in b"".join(path.read_bytes() for path in [*left, folder / "output.txt"])
    return printed


def stored_texts(folder: Path) -> dict[str, list[str]]:
    """Last message of a request -> its texts; every request must stand in the store exactly once."""
    lines = [json.loads(line) for line in (folder / "run/traces.jsonl").read_text().splitlines()]
    texts = {line["messages"][-1]["content"]: line["texts"] for line in lines[1:]}
    assert len(texts) == len(lines) - 1
    return texts


def _answered(store: Path) -> int:
    return max(0, store.read_bytes().count(b"\n") - 1) if store.exists() else 0
