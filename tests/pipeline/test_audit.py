"""``isodistill audit`` with tiny encoders made on the spot: planted swaps, its files, and what bad input is told."""

from __future__ import annotations

import json
import random
from html import escape
from itertools import permutations
from pathlib import Path

import pytest
import torch
from transformers import AutoModel
from typer.testing import CliRunner

from isodistill.cli import app
from isodistill.influence import Fit
from isodistill.pipeline import audit_pairs

N, N_SWAPPED = 150, 15
SMALL = Fit(epochs=20, batch_size=75, lr=1e-2, temperature=0.3, delta=5.0, recorded=1, probes=8)


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


def swapped(rows: list[dict]) -> list[dict]:
    """The first rows get each other's second text, each that of the next, and all say which ones these are."""
    texts = [row["b"] for row in rows[:N_SWAPPED]]
    wrong = [row | {"b": text} for row, text in zip(rows, texts[1:] + texts[:1], strict=False)]
    return [row | {"planted": n < N_SWAPPED} for n, row in enumerate(wrong + rows[N_SWAPPED:])]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(tiny_text_encoder, tmp_path_factory):
    """The folder of an audit, with what was audited and what was found."""
    folder = tmp_path_factory.mktemp("audit")
    rows = swapped(matched(N, seed=1))
    rows[25]["a"] = "<script>left1 " + " left2" * 30
    rows.append({"id": "again", "source": "a book"} | {side: rows[30][side] for side in "ab"})
    pairs, queries = written(folder / "pairs.jsonl", rows), written(folder / "clean.jsonl", matched(80, seed=2))
    audit_pairs(pairs, queries, str(tiny_text_encoder), folder / "out", "isodistill audit", remove=0.25, how=SMALL)
    return folder / "out", rows, json.loads((folder / "out" / "audit.json").read_text(encoding="utf-8"))


def test_planted_pairs_are_found_better_than_chance(done):
    folder, rows, summary = done
    ranked = lines(folder / "audit-pairs.jsonl")
    wrong = {row["id"] for row in rows if row.get("planted")}
    assert summary["planted"]["n_planted"] == N_SWAPPED
    assert summary["planted"]["n_known"] == N  # the repeated pair does not say
    for name, sign in (("score", 1), ("relative", 1), ("similarity", 1), ("loss", -1)):
        measured = auroc([pair for pair in ranked if pair["id"] != "again"], wrong, name, sign)
        assert summary["planted"][name]["auroc"] == pytest.approx(measured)
        assert measured > 0.7, name
    first = [pair["id"] in wrong for pair in ranked[:N_SWAPPED]]
    assert summary["planted"]["score"]["precision"] == pytest.approx(sum(first) / N_SWAPPED)


def auroc(ranked: list[dict], wrong: set[str], name: str, sign: int) -> float:
    """How often a swapped pair has the lower value than a right one."""
    low = [sign * pair[name] for pair in ranked if pair["id"] in wrong]
    high = [sign * pair[name] for pair in ranked if pair["id"] not in wrong]
    return sum(x < y for x in low for y in high) / (len(low) * len(high))


def test_all_pairs_are_listed_and_the_worst_are_not_kept(done):
    ranked = lines(done[0] / "audit-pairs.jsonl")
    n_out = round(0.25 * (N + 1))
    assert len({pair["id"] for pair in ranked}) == N + 1
    assert [pair["score"] for pair in ranked] == sorted(pair["score"] for pair in ranked)
    assert [pair["keep"] for pair in ranked] == [False] * n_out + [True] * (N + 1 - n_out)


def test_the_cleaned_file_is_the_users_with_one_more_column(done):
    folder, rows, _ = done
    kept = {pair["id"]: pair["keep"] for pair in lines(folder / "audit-pairs.jsonl")}
    assert lines(folder / "audit-cleaned.jsonl") == [row | {"keep": kept[row["id"]]} for row in rows]


def test_duplicates_and_long_texts_are_counted(done):
    folder, _, summary = done
    assert (summary["n_duplicates"], summary["duplicates"]) == (1, [["1-30", "again"]])
    assert (summary["n_longer"], summary["context"], summary["n_unread"]) == (1, 12, 0)
    assert summary["n_harmful"] == sum(pair["score"] < 0 for pair in lines(folder / "audit-pairs.jsonl"))


def test_the_curve_starts_at_the_whole_and_every_ranking_is_judged(done):
    removal = done[2]["removal"]
    assert (removal["n_ranking"], removal["n_judging"]) == (40, 40)
    for name in ("score", "similarity", "random"):
        assert len(removal[name]["loss"]) == len(removal[name]["accuracy"]) == len(removal["shares"])
        assert removal[name]["loss"][0] == removal["random"]["loss"][0]
    tenth = removal["shares"].index(0.1)
    assert removal["score"]["loss"][tenth] < removal["random"]["loss"][tenth]


def test_a_mistake_is_traced_to_the_pairs_without_which_its_loss_falls(done):
    explained = done[2]["explained"]
    assert explained["wrong"]
    assert explained["query"]["id"] in explained["mistakes"]
    assert explained["chosen"] != explained["query"]["b"]
    behind = explained["behind"]
    assert all(pair["influence"] < 0 for pair in behind)
    assert [pair["relative"] for pair in behind] == sorted(pair["relative"] for pair in behind)
    assert explained["without"]["loss"] < explained["loss"]


def test_the_page_shows_the_worst_pair_and_escapes_texts(done):
    page = (done[0] / "audit.html").read_text(encoding="utf-8")
    assert all(escape(pair[side]) in page for pair in lines(done[0] / "audit-pairs.jsonl")[:5] for side in "ab")
    assert page.count("<svg") == 3
    assert f"{N_SWAPPED} planted" in page
    assert escape(done[2]["explained"]["chosen"]) in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def audit(encoder: Path, folder: Path, pairs: list[dict], queries: list[dict], *more: str) -> tuple[int, str]:
    arguments = [
        "audit", written(folder / "pairs.jsonl", pairs), "--queries", written(folder / "clean.jsonl", queries),
        "--model", encoder, "--out", folder / "out", *more,
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def fails(encoder: Path, folder: Path, pairs: list[dict], queries: list[dict], *more: str) -> str:
    code, output = audit(encoder, folder, pairs, queries, *more)
    assert code == 2
    assert not (folder / "out").exists()
    return output


def test_bad_input_is_told(tiny_text_encoder, tmp_path):
    encoder, good, clean = tiny_text_encoder, matched(4, seed=1), matched(4, seed=2)
    assert "pairs.jsonl holds one row" in fails(encoder, tmp_path, good[:1], clean)
    assert "clean.jsonl holds one row" in fails(encoder, tmp_path, good, clean[:1])
    assert "clean.jsonl holds no rows" in fails(encoder, tmp_path, good, [])
    assert "pairs.jsonl, line 2, column b: is missing" in fails(encoder, tmp_path, [good[0], {"a": "left1"}], clean)
    assert "column a: holds ''" in fails(encoder, tmp_path, [good[0] | {"a": ""}], clean)
    assert "column planted: holds 1" in fails(encoder, tmp_path, [good[0] | {"planted": 1}], clean)
    same = {"a": good[2]["a"].upper(), "b": good[2]["b"]}
    told = fails(encoder, tmp_path, good, [*clean, same])
    assert all(part in told for part in ("1 of 5 queries are among the pairs", "line 5", "line 3"))
    assert "--remove" in fails(encoder, tmp_path, good, clean, "--remove", "1")
    assert "has no 'nobody'" in fails(encoder, tmp_path, good, clean, "--explain", "nobody")
    assert "no folder /nowhere" in fails(Path("/nowhere"), tmp_path, good, clean)
    image = {"image": "x.png", "caption": "left1"}
    assert "line 2 holds one of image and caption" in fails(encoder, tmp_path, [good[0], image], clean)
    assert "judge their own kind" in fails(encoder, tmp_path, [image, image | {"image": "y.png"}], clean)


def test_without_contrast_nothing_is_ranked(tiny_text_encoder, tmp_path):
    good, clean = matched(4, seed=1), matched(4, seed=2)
    assert "All 3 rows of" in fails(tiny_text_encoder, tmp_path, [good[0]] * 3, clean)
    assert "All 2 rows of" in fails(tiny_text_encoder, tmp_path, good, [clean[0]] * 2)


def test_two_pairs_and_a_query_twice_are_enough(tiny_text_encoder, tmp_path):
    clean = matched(4, seed=2)
    pairs, queries = (
        written(tmp_path / "p.jsonl", matched(2, seed=1)),
        written(tmp_path / "q.jsonl", [*clean, clean[0]]),
    )
    page = audit_pairs(pairs, queries, str(tiny_text_encoder), tmp_path / "out", "audit", how=SMALL)
    assert "0 pairs and 1 queries repeat another" in page.read_text(encoding="utf-8")


def test_embeddings_that_are_not_finite_cost_their_pairs(tiny_text_encoder, tmp_path):
    model = AutoModel.from_pretrained(tiny_text_encoder)
    model.embeddings.word_embeddings.weight.data[2] = torch.nan  # left0
    broken = tmp_path / "encoder"
    model.save_pretrained(broken)
    for file in tiny_text_encoder.glob("tokenizer*"):
        (broken / file.name).write_bytes(file.read_bytes())
    pairs, clean = matched(20, seed=1), [row for row in matched(30, seed=2) if "left0" not in row["a"].split()]
    bad = [row for row in pairs if "left0" in row["a"].split()]
    assert 0 < len(bad) < 19
    written(tmp_path / "pairs.jsonl", pairs)
    written(tmp_path / "clean.jsonl", clean)
    audit_pairs(tmp_path / "pairs.jsonl", tmp_path / "clean.jsonl", str(broken), tmp_path / "out", "audit", how=SMALL)
    unread = lines(tmp_path / "out" / "audit-unread.jsonl")
    assert [row["column"] for row in unread] == ["a"] * len(bad)
    assert "not finite" in unread[0]["reason"]
    kept = {row["id"]: row["keep"] for row in lines(tmp_path / "out" / "audit-cleaned.jsonl")}
    assert not any(kept[row["id"]] for row in bad)
    (tmp_path / "all").mkdir()
    assert "None of the" in fails(broken, tmp_path / "all", bad[:2], clean)


def test_the_curve_takes_as_many_pairs_as_it_is_told(tiny_text_encoder, tmp_path):
    pairs, clean = matched(40, seed=1), matched(6, seed=2)
    for told, n in (("0", None), ("20", 20), ("100", 40)):
        code, output = audit(tiny_text_encoder, tmp_path, pairs, clean, "--curve-pairs", told)
        assert code == 0, output
        assert ("13/13" in output) == (n is not None)  # a bar counts the fits
        summary = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
        assert (summary["removal"] or {"n_pairs": None})["n_pairs"] == n
        page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
        assert ("It was not asked for" in page) == (n is None)
        assert ("to 20 pairs drawn of all" in page) == (n == 20)


def test_a_stopped_curve_leaves_all_else_and_an_earlier_stop_nothing(tiny_text_encoder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    for part, told, written_files in (
        ("removal_findings", "Stopped in the removal curve; all else is in", 5),
        ("suspect", "nothing has been written", 0),
    ):
        folder = tmp_path / part
        folder.mkdir()
        with monkeypatch.context() as patched:
            patched.setattr(f"isodistill.pipeline.audit.{part}", stop)
            code, output = audit(tiny_text_encoder, folder, matched(6, seed=1), matched(6, seed=2))
        assert code == 130
        assert told in " ".join(output.split())
        assert len(list((folder / "out").glob("*"))) == written_files
    page = (tmp_path / "removal_findings" / "out" / "audit.html").read_text(encoding="utf-8")
    assert "Not finished" in page


def test_a_solver_that_stops_early_is_told_on_the_page(tiny_text_encoder, tmp_path):
    files = [written(tmp_path / f"{n}.jsonl", matched(30, seed=n)) for n in (1, 2)]
    flat = Fit(epochs=1, batch_size=10, delta=1e-9, recorded=1, probes=4)
    with pytest.warns(UserWarning, match="of 4 solves stopped after 100 products"):
        audit_pairs(*files, str(tiny_text_encoder), tmp_path / "out", "audit", how=flat, curve_pairs=0)
    summary = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert summary["norms_open"] == 4
    assert summary["norms_residual"] > 0.01
    assert "4 of 4 solves behind the relative scores stopped" in page
    assert not summary["converged"]
    assert "the scores are rough" in page
    assert "so the causes are rough" in page


def test_a_query_of_the_users_choice_is_traced_whether_it_is_right_or_wrong(tiny_text_encoder, tmp_path):
    code, output = audit(tiny_text_encoder, tmp_path, matched(3, seed=1), matched(3, seed=2), "--explain", "2-1")
    assert code == 0, output
    summary = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert summary["explained"]["query"]["id"] == "2-1"
    assert summary["removal"] is None  # three queries are too few to be halved
    assert "fewer than four queries" in (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
