"""``isodistill audit`` with a tiny encoder made on the spot: planted swaps, its files, and what bad input is told."""

from __future__ import annotations

import json
import random
from html import escape
from itertools import permutations
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from isodistill.cli import app

WORDS = [f"{kind}{i}" for kind in ("left", "right") for i in range(12)]
N, N_SWAPPED = 240, 24


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=12)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def matched(n: int, seed: int) -> list[dict]:
    """Three words to the left, the words of the same numbers to the right, in another order; no pair in two seeds."""
    numbers = list(permutations(range(12), 3))
    random.Random(0).shuffle(numbers)
    rows = []
    for i, three in enumerate(numbers[300 * seed : 300 * seed + n]):
        a, b = " ".join(f"left{k}" for k in three), " ".join(f"right{k}" for k in sorted(three))
        rows.append({"id": f"{seed}-{i}", "a": a, "b": b})
    return rows


def swapped(rows: list[dict]) -> tuple[list[dict], set[str]]:
    """The first rows get each other's second text, each that of the next."""
    texts = [row["b"] for row in rows[:N_SWAPPED]]
    wrong = [row | {"b": text} for row, text in zip(rows, texts[1:] + texts[:1], strict=False)]
    return wrong + rows[N_SWAPPED:], {row["id"] for row in wrong}


def audit(*arguments: object):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


@pytest.fixture(scope="module")
def done(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    rows, wrong = swapped(matched(N, seed=1))
    rows[25]["a"] = "<script>left1 " + " left2" * 30
    rows.append(rows[30] | {"id": "again"})
    pairs, queries = written(folder / "pairs.jsonl", rows), written(folder / "clean.jsonl", matched(120, seed=2))
    result = audit(pairs, "--queries", queries, "--model", encoder, "--out", folder / "out", "--remove", "0.25")
    assert result.exit_code == 0, result.output
    lines = (folder / "out" / "audit-pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return folder / "out", [json.loads(line) for line in lines], wrong


def test_swapped_pairs_are_found_better_than_chance(done):
    _, ranked, wrong = done
    found = {name: auroc(ranked, wrong, name) for name in ("score", "influence", "similarity", "loss")}
    print(found)
    assert found["score"] > 0.85
    assert found["similarity"] > 0.85
    assert found["loss"] < 0.15  # the swapped have the higher loss


def auroc(ranked: list[dict], wrong: set[str], name: str) -> float:
    """How often a swapped pair has the lower value than a right one."""
    low = [pair[name] for pair in ranked if pair["id"] in wrong]
    high = [pair[name] for pair in ranked if pair["id"] not in wrong]
    return sum(x < y for x in low for y in high) / (len(low) * len(high))


def test_all_pairs_are_listed_and_the_worst_are_not_kept(done):
    _, ranked, _ = done
    assert len({pair["id"] for pair in ranked}) == N + 1
    assert [pair["score"] for pair in ranked] == sorted(pair["score"] for pair in ranked)
    assert [pair["keep"] for pair in ranked] == [False] * round(0.25 * (N + 1)) + [True] * (
        N + 1 - round(0.25 * (N + 1))
    )


def test_duplicates_and_long_texts_are_counted(done):
    folder, ranked, _ = done
    summary = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert (summary["n_duplicates"], summary["duplicates"]) == (1, [["1-30", "again"]])
    assert (summary["n_longer"], summary["context"]) == (1, 12)
    assert summary["n_harmful"] == sum(pair["influence"] < 0 for pair in ranked)


def test_the_page_shows_the_worst_pair_and_escapes_texts(done):
    folder, ranked, _ = done
    page = (folder / "audit.html").read_text(encoding="utf-8")
    assert all(escape(pair[side]) in page for pair in ranked[:5] for side in "ab")
    assert "<svg" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def fails(encoder: Path, folder: Path, pairs: list[dict], queries: list[dict], *more: str) -> str:
    result = audit(
        written(folder / "pairs.jsonl", pairs), "--queries", written(folder / "clean.jsonl", queries),
        "--model", encoder, "--out", folder / "out", *more,
    )  # fmt: skip
    assert result.exit_code == 2
    assert not (folder / "out").exists()
    return result.output


def test_bad_input_is_told(encoder, tmp_path):
    good, clean = matched(4, seed=1), matched(4, seed=2)
    assert "holds one row" in fails(encoder, tmp_path, good[:1], clean)
    assert "clean.jsonl holds no rows" in fails(encoder, tmp_path, good, [])
    assert "pairs.jsonl, line 2, column b: is missing" in fails(encoder, tmp_path, [good[0], {"a": "left1"}], clean)
    assert "column a: holds ''" in fails(encoder, tmp_path, [good[0] | {"a": ""}], clean)
    same = {"a": good[2]["a"].upper(), "b": good[2]["b"]}
    told = fails(encoder, tmp_path, good, [*clean, same])
    assert all(part in told for part in ("1 of 5 queries are among the pairs", "line 5", "line 3"))
    assert "--remove" in fails(encoder, tmp_path, good, clean, "--remove", "1")
    assert "no folder /nowhere" in fails(Path("/nowhere"), tmp_path, good, clean)
