"""What `isodistill audit` finds of shuffled pairs with real text, and what it takes.

    python studies/audit_verb.py --data FOLDER --encoder FOLDER --out FOLDER [--seed 0] [--parameters heads|lora|NAMES]

FOLDER of the encoder: all-MiniLM-L6-v2 in the transformers format. 700 SNLI entailment pairs, one of each caption;
a tenth of them is drawn by the seed and its second texts passed on in a ring. The other 232 captions are the clean
queries. Printed are AUROC and precision of each column, the curve, and processor seconds in all.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from ecif_data import read

from isodistill.pipeline import audit_pairs

N_PAIRS, N_PLANTED = 700, 70

Row = dict[str, object]


def main() -> None:
    """Write the two files, audit them, and print what was found."""
    parser = argparse.ArgumentParser(description="The verb audit on SNLI pairs of which a tenth was shuffled.")
    for name in ("--data", "--encoder", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parameters", default="heads")
    parser.add_argument("--curve-pairs", type=int, default=None)
    given = parser.parse_args()
    pairs, clean = shuffled(given.data, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    files = [given.out / "pairs.jsonl", given.out / "clean.jsonl"]
    for file, rows in zip(files, (pairs, clean), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    how = {"parameters": given.parameters, "curve_pairs": given.curve_pairs}
    started = time.process_time()
    audit_pairs(*files, str(given.encoder), given.out, "python studies/audit_verb.py", **how)
    print(f"{time.process_time() - started:.0f} processor seconds")
    found = json.loads((given.out / "audit.json").read_text(encoding="utf-8"))
    for name in ("score", "relative", "similarity", "loss"):
        print(name, {key: round(value, 3) for key, value in found["planted"][name].items()})
    print("residuals", found["residual"], found["norms_residual"], found["norms_open"])
    for name in ("score", "similarity", "random") if found["removal"] else ():
        print(name, {key: [round(x, 3) for x in values] for key, values in found["removal"][name].items()})
    told = found["explained"]
    print(
        len(told["mistakes"]), "mistakes; traced:", {key: told[key] for key in ("query", "chosen", "loss", "without")}
    )
    print("without random ones:", told["without_random"], "predicted:", told["predicted_loss"])


def shuffled(data: Path, seed: int) -> tuple[list[Row], list[Row]]:
    """The pairs, each with whether it is planted, and the clean ones."""
    rows = read(data / "pairs" / "snli_pairs" / "dev.jsonl.gz")
    first = {row["anchor"]: row for row in reversed(rows) if row["label"] == "entailment"}
    pairs: list[Row] = [{"id": f"pair-{n}", "a": r["text_a"], "b": r["text_b"]} for n, r in enumerate(first.values())]
    rng = random.Random(seed)
    rng.shuffle(pairs)
    wrong = rng.sample(range(N_PAIRS), N_PLANTED)
    texts = [pairs[n]["b"] for n in wrong]
    for n, text in zip(wrong, texts[1:] + texts[:1], strict=True):
        pairs[n]["b"] = text
    planted = set(wrong)
    return [row | {"planted": n in planted} for n, row in enumerate(pairs[:N_PAIRS])], pairs[N_PAIRS:]


if __name__ == "__main__":
    main()
