"""Are swapped members of isomer sets found by `isodistill isomers check --audit`, and by plain cosines?

    python studies/audit_sets.py --encoder FOLDER [--data FOLDER]

FOLDER of the encoder: all-MiniLM-L6-v2 in the transformers format. A tenth of the members, drawn by a seed, change
places in twos with a member of the same domain in another set. Printed is the AUROC of a member's mean similarity to
its set, and the share of swapped members among as many of the lowest; mean over three seeds, and the three.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torch.nn.functional import normalize

from isodistill.data.rows import Row
from isodistill.influence import SET_FIT, belonging, centred
from isodistill.isomers import generate_sets, import_groups
from isodistill.models.text_encoder import TextEncoder, load_text_encoder

SHARE, SEEDS = 0.1, (1, 2, 3)


def generated(seed: int) -> list[Row]:
    """Sixty sets in four domains."""
    return generate_sets(n_sets=60, domains=["law", "medicine", "cooking", "sports"], seed=seed)


def prontoqa(data: Path, seed: int) -> list[Row]:
    """A hundred of the groups of three, drawn by the seed."""
    rows = import_groups("prontoqa_isomers", data)
    drawn = set(random.Random(seed).sample(sorted({str(row.set_id) for row in rows}), 100))
    return [row for row in rows if row.set_id in drawn]


def swapped(rows: list[Row], seed: int) -> tuple[list[Row], Tensor]:
    """The rows after the swaps, and which of them stand in a set that is not theirs; a set takes part in one swap."""
    rng, rows = random.Random(seed), list(rows)
    planted, touched = torch.zeros(len(rows), dtype=torch.bool), set()
    for n in rng.sample(range(len(rows)), len(rows)):
        if int(planted.sum()) >= SHARE * len(rows):
            break
        free = [m for m in range(len(rows)) if rows[m].domain == rows[n].domain and rows[m].set_id not in touched]
        free = [m for m in free if rows[m].set_id != rows[n].set_id]
        if rows[n].set_id in touched or not free:
            continue
        m = rng.choice(free)
        rows[n], rows[m] = replace(rows[n], prompt=rows[m].prompt), replace(rows[m], prompt=rows[n].prompt)
        touched |= {rows[n].set_id, rows[m].set_id}
        planted[[n, m]] = True
    return rows, planted


@torch.no_grad()
def features_of(rows: list[Row], encoder: TextEncoder) -> Tensor:
    """(n, d) of norm 1."""
    texts = [str(row.prompt) for row in rows]
    return normalize(torch.cat([encoder.encode_a(texts[n : n + 32]) for n in range(0, len(texts), 32)]), dim=-1)


def found(score: Tensor, planted: Tensor) -> tuple[float, float]:
    """AUROC and precision of a score that is low for what does not belong."""
    auroc = (score[planted][:, None] < score[~planted]).double().mean()
    return float(auroc), float(planted[score.argsort()[: int(planted.sum())]].double().mean())


def main() -> None:
    """Print a line for each kind of sets and each score."""
    parser = argparse.ArgumentParser(description="Are swapped members of isomer sets found?")
    parser.add_argument("--encoder", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, default=None, help="folder of the real data sets, for ProntoQA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_text_encoder(given.encoder)
    plain = replace(SET_FIT, epochs=1, lr=0.0)  # heads as they start: cosines
    kinds = {"generated": generated} | ({"prontoqa": lambda seed: prontoqa(given.data, seed)} if given.data else {})
    for kind, draw in kinds.items():
        results = defaultdict(list)
        for seed in SEEDS:
            rows, planted = swapped(draw(seed), seed)
            features, sets = features_of(rows, encoder), [str(row.set_id) for row in rows]
            less_domain = centred(features, [row.domain for row in rows])
            results["heads"].append(found(belonging(less_domain, sets).member, planted))
            results["heads, domains not centred"].append(found(belonging(features, sets).member, planted))
            results["cosine"].append(found(belonging(features, sets, plain).member, planted))
            results["cosine, domains centred"].append(found(belonging(less_domain, sets, plain).member, planted))
            print(f"{kind}, seed {seed}: {len(rows)} members, {int(planted.sum())} swapped", flush=True)
        for name, values in results.items():
            for i, measure in enumerate(("AUROC", "precision")):
                each = ", ".join(f"{value[i]:.3f}" for value in values)
                print(f"{kind} | {name} | {measure} {mean(value[i] for value in values):.3f} ({each})", flush=True)


if __name__ == "__main__":
    main()
