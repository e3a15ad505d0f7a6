"""``isomers check --audit``: swapped members of sets are found, and what is kept of sets that could not be read."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from isodistill.cli import app
from isodistill.data.load import load_rows, write_rows
from isodistill.influence import Fit, belonging, centred, fit_heads
from isodistill.isomers import check_sets, generate_sets
from isodistill.pipeline import audit_sets

SWAPPED = 6


def sets_of(n: int) -> tuple[list[dict], set[str]]:
    """Three domains tell three numbers each in words of their own; six members stand in each other's sets."""
    numbers = list(permutations(range(12), 3))
    random.Random(0).shuffle(numbers)
    tell = {
        "law": lambda three: " ".join(f"left{k}" for k in three),
        "sports": lambda three: " ".join(f"right{k}" for k in sorted(three)),
        "cooking": lambda three: " ".join(f"left{k} right{k}" for k in reversed(three)),
    }
    rows = [
        {
            "id": f"{i}/{domain}",
            "set_id": f"set{i}",
            "domain": domain,
            "prompt": say(three),
            "answer": str(i),
            "answer_type": "number",
        }
        for i, three in enumerate(numbers[:n])
        for domain, say in tell.items()
    ]
    places = [9 * k + 1 for k in range(SWAPPED)]
    texts = [rows[place]["prompt"] for place in places]
    for n_text, place in enumerate(places):
        rows[place]["prompt"] = texts[(n_text + 1) % SWAPPED]
    return rows, {rows[place]["id"] for place in places}


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["isomers", "check", *map(str, arguments)])
    return result.exit_code, result.output


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_swapped_members_are_found_and_not_kept(tiny_text_encoder, tmp_path):
    raw, wrong = sets_of(50)
    rows = load_rows(written(tmp_path / "sets.jsonl", raw)).rows
    learning = Fit(epochs=30, lr=1e-2, temperature=0.3, delta=1.0, recorded=1)  # a random encoder has much to learn
    found = audit_sets(rows, check_sets(rows), str(tiny_text_encoder), tmp_path, "isodistill", flag=0.2, how=learning)
    flagged = {row.id for row in found.flagged}
    assert (found.n_members, len(flagged)) == (150, 30)
    assert len(flagged & wrong) >= SWAPPED - 1
    members, pairs = lines(tmp_path / "audit-members.jsonl"), lines(tmp_path / "audit-pairs.jsonl")
    assert {member["id"] for member in members if not member["keep"]} == flagged
    assert len(pairs) == 150
    assert all(pair["keep"] == (not {pair["a"], pair["b"]} & flagged) for pair in pairs)
    page = found.page.read_text(encoding="utf-8")
    worst = members[0]
    pair = max(
        (pair for pair in pairs if worst["id"] in (pair["a"], pair["b"])),
        key=lambda pair: next(m["similarity"] for m in members if m["id"] in (pair["a"], pair["b"]) and m != worst),
    )
    other = next(m for m in members if m["id"] in (pair["a"], pair["b"]) and m != worst)
    start = page.index(f"1. {worst['id']} ")
    shown = page[start : page.index("2. ", start)]
    assert worst["text"] in shown
    assert "reader: not readable" in shown
    assert shown.index(worst["text"]) < shown.index(f"{other['id']} ") < shown.index(f"{pair['similarity']:.2f}")
    assert page.count('class="answer"') == 30
    assert page.count("<svg") == 1
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not {row.id for row in found.kept} & flagged  # the reader can say nothing about these texts
    assert set(Counter(row.set_id for row in found.kept).values()) == {2, 3}


def test_what_the_reader_proved_is_kept_and_what_it_refuted_is_not(tiny_text_encoder, tmp_path):
    rows = generate_sets(n_sets=6, families=["rates"], domains=["law", "sports"], seed=0)
    write_rows(tmp_path / "sets.jsonl", rows)
    broken = lines(tmp_path / "sets.jsonl")
    broken[0]["answer"] = "12345"
    file, keep = written(tmp_path / "broken.jsonl", broken), tmp_path / "kept.jsonl"
    more = ("--model", tiny_text_encoder, "--flag", "0.9", "--keep", keep)
    code, output = check(file, "--audit", tmp_path / "out", *more)
    assert code == 0, output
    assert "12 members compared with their sets, 11 flagged" in output
    assert "12 texts are longer than the encoder reads" in " ".join(output.split())
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "reader: proved" in page
    assert {row["set_id"] for row in lines(keep)} == {row.set_id for row in rows} - {broken[0]["set_id"]}
    assert len(lines(keep)) == 10


def test_too_few_sets_and_bad_shares_are_told(tiny_text_encoder, tmp_path):
    file = written(tmp_path / "sets.jsonl", sets_of(50)[0][:9])
    for more, told in ((("--flag", "1"), "--flag"), ((), "four sets of two members")):
        code, output = check(file, "--audit", tmp_path / "out", "--model", tiny_text_encoder, *more)
        assert code == 2
        assert told in output
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="four sets"):
        belonging(torch.eye(8), [*"aabbccd", "e"])


def test_no_batch_holds_two_pairs_of_a_set_and_no_pair_is_judged_by_heads_that_saw_it(monkeypatch):
    seen = []

    def spy(a, b, how, epochs):
        seen.append((a, epochs))
        return fit_heads(a, b, how, epochs)

    monkeypatch.setattr("isodistill.influence.sets.fit_heads", spy)
    features = torch.nn.functional.normalize(torch.randn(18, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    sets = [f"set{n // 3}" for n in range(18)]
    found = belonging(features, sets, Fit(width=6, epochs=2, batch_size=4, recorded=1))
    assert len(found.pairs) == 18
    assert len(seen) == 3  # six sets are judged in three folds of two
    for a, epochs in seen:
        owner = [sets[int((features == row).all(1).nonzero()[0])] for row in a]
        assert len(set(owner)) == 4
        assert all(len({owner[n] for n in batch.tolist()}) == len(batch) for epoch in epochs for batch in epoch)
    mean = torch.stack([found.similarity[(found.pairs == n).any(1)].mean() for n in range(18)])
    assert torch.allclose(found.member, mean)


def test_features_lose_the_mean_of_their_domain_but_not_where_it_has_few_rows():
    features = torch.randn(23, 4, generator=torch.Generator().manual_seed(0)) + 3
    domains = ["law"] * 12 + ["sports"] * 10 + [None]
    result = centred(features, domains)
    expected = torch.cat([features[:12] - features[:12].mean(0), features[12:22] - features[12:22].mean(0)])
    assert torch.allclose(result[:22], torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)
    alone = features[22] - features.mean(0)
    assert torch.allclose(result[22], alone / alone.norm(), atol=1e-6)
