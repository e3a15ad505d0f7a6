"""The page: what it says, that it opens offline, and that the same files give the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from isodistill.errors import UserError
from isodistill.report import write_report

MakeRun = Callable[..., Path]
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """An HTML tree read with the standard library alone: checks balance, collects text, ids and links."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closed out of turn"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_lines(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        change(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def report(run: Path, baseline: Path | None = None, out: Path | None = None, command: str = "isodistill run") -> str:
    out = out or run / "report.html"
    write_report(run, baseline=baseline, command=command, out=out)
    return out.read_text(encoding="utf-8")


Pair = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def pair_html(untouched_pair: Pair) -> str:
    return report(*untouched_pair)


@pytest.fixture
def pair(make_run: MakeRun, make_comparison: MakeRun, tmp_path: Path) -> Pair:
    """Run, baseline, and where to write their report."""
    erm, iga = make_run("erm"), make_run("iga")
    (tmp_path / "both").mkdir()
    make_comparison(tmp_path / "both", erm, iga)
    return iga, erm, tmp_path / "both" / "report.html"


def test_two_runs_headline_is_the_difference_out_of_domain(untouched_pair: Pair, pair_html: str) -> None:
    page = Page(pair_html)
    d, lo, hi = json.loads((untouched_pair[2].parent / "comparison.json").read_text())["differences"]["iga"]["ood"][
        "acc_macro"
    ]
    large = re.search(r'class="value \w+">([^<]*)<', pair_html)
    assert large is not None
    assert large[1] == f"+{100 * d:.1f} points"
    assert f"95 % interval +{100 * lo:.1f} to +{100 * hi:.1f} clear gain" in page.words
    order = [page.words.index(s) for s in ("IGA, tier F (ours) against ERM", "minus ERM", "training with ERM moved")]
    assert order == sorted(order)
    assert "exact McNemar test on sets, p = 0.115" in page.words
    assert "LCS (our definition)" in page.words


def test_one_run_headline_is_after_minus_before(make_run: MakeRun, make_comparison: MakeRun) -> None:
    run = make_run("iga")
    make_comparison(run, run)
    before, after = (
        json.loads((run / "results.json").read_text())[k]["ood"]["acc_macro"] for k in ("before", "splits")
    )
    html = report(run)
    assert f'class="value better">+{100 * (after - before):.1f} points<' in html
    assert "ERM" not in Page(html).words
    summary = re.search(r"<summary>ood-.*?</summary>", html, flags=re.DOTALL)
    assert summary is not None
    assert summary[0].index("before training") < summary[0].index("IGA")


def test_a_lower_lcs_ratio_is_better_less_agreement_worse_and_lcs_alone_neither(
    make_run: MakeRun, make_comparison: MakeRun
) -> None:
    run = make_run("iga", n_sets=6)

    keys = ("lcs", "lcs_ratio", "agreement")

    def change(comparison: dict[str, Any]) -> None:
        comparison["differences"]["before"]["ood"] |= {key: [-0.2, -0.3, -0.1] for key in keys}

    edit(make_comparison(run, run), change)
    html = report(run)
    for label, tone in (("LCS ratio", "better"), ("Agreement", "worse")):
        row = html[html.index(f'<th scope="row">{label}<') :].split("</tr>")[0]
        assert f'<td class="{tone}"><em>{tone}</em>' in row
    lcs = html[html.index('<th scope="row">LCS<') :].split("</tr>")[0]
    assert "\N{MINUS SIGN}0.200" in lcs
    assert "<em>" not in lcs


def test_one_run_without_a_comparison_claims_no_interval(make_run: MakeRun) -> None:
    html = report(make_run("iga"))
    assert 'class="value unknown">' in html
    assert "No interval was computed, so chance is not ruled out." in Page(html).words


def test_comparison_with_another_run_gives_no_interval_to_a_run_alone(
    make_run: MakeRun, make_comparison: MakeRun
) -> None:
    run = make_run("iga")
    make_comparison(run, make_run("erm"), run)
    assert 'class="value unknown">' in report(run)


def test_a_run_that_was_not_evaluated_before_shows_its_accuracy(make_run: MakeRun) -> None:
    page = Page(report(make_run("erm", before=False)))
    assert "There is nothing to compare with." in page.words
    assert "before training" not in page.words


def test_page_is_balanced_offline_and_small(pair_html: str) -> None:
    page = Page(pair_html)
    assert pair_html.startswith("<!DOCTYPE html>")
    assert len(pair_html.encode()) < 1_500_000
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object"})
    loads = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href", "srcset")]
    assert all(value is not None and value.startswith("#") for value in loads)
    assert "@import" not in pair_html
    assert not re.search(r"url\((?!#)", pair_html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_same_files_same_bytes(untouched_pair: Pair, pair_html: str) -> None:
    assert report(*untouched_pair) == pair_html


def test_text_of_problems_answers_and_settings_is_never_markup(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=6)
    hostile = "<script>alert(1)</script><b>&amp;"
    edit_lines(run / "problems" / "ood.jsonl", lambda row: row.update(prompt=f"prompt {hostile}"))
    edit_lines(
        run / "predictions.jsonl", lambda line: line.update(output=f"output {hostile}", parsed=f"parsed {hostile}")
    )
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | {"note": f"note {hostile}"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    html = report(run, command=f"command {hostile}")
    assert "<script" not in html
    words = Page(html).words
    assert all(f"{place} {hostile}" in words for place in ("prompt", "output", "parsed", "note", "command"))


def test_chat_prompts_are_shown_by_role(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=2)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    edit_lines(run / "problems" / "ood.jsonl", lambda row: row.update(prompt=chat))
    assert "system: Be brief. user: How many?" in Page(report(run)).words


def test_ten_sets_show_every_record_of_both_students_with_its_mark(untouched_pair: Pair, pair_html: str) -> None:
    records = {}
    for run in untouched_pair[:2]:
        for line in (run / "predictions.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if entry["stage"] == "after":
                records[run.name, entry["set_id"], entry["domain"]] = entry["outcome"]
    blocks = re.findall(r"<summary>((?:ood|id)-\d+) .*?</details>", pair_html, flags=re.DOTALL)
    bodies = re.findall(r"<summary>(?:ood|id)-\d+ (.*?)</details>", pair_html, flags=re.DOTALL)
    assert len(blocks) == len(set(blocks)) == 10
    assert sum(s.startswith("ood") for s in blocks) == 5
    marks = {"correct": "✓ right", "wrong": "✗ wrong", "truncated": "… unfinished", "unparsed": "? no answer found"}
    for set_id, body in zip(blocks, bodies, strict=True):
        domains = sorted(domain for run, s, domain in records if s == set_id and run == "iga")
        expected = [marks[records[run, set_id, d]] for d in domains for run in ("erm", "iga")]
        assert re.findall(r'<span class="mark">(.*?)</span>', body) == expected
        signs = " ".join(marks[records["iga", set_id, d]][0] for d in domains)
        assert f"IGA, tier F (ours)</span> {signs}</span>" in body


def test_sets_do_not_depend_on_the_order_of_the_records(pair: Pair) -> None:
    first = report(*pair)
    for run in pair[:2]:
        lines = (run / "predictions.jsonl").read_text().splitlines(keepends=True)
        (run / "predictions.jsonl").write_text("".join(reversed(lines)))
    assert report(*pair) == first


def test_a_problem_that_one_student_has_no_record_of_is_said_so(pair: Pair) -> None:
    (pair[1] / "predictions.jsonl").write_text("")
    assert "ERM: no record of this problem" in Page(report(*pair)).words


def test_rows_without_a_set_stand_alone(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=1)
    edit_lines(run / "predictions.jsonl", lambda line: line.update(set_id=None))
    words = Page(report(run)).words
    assert "8 isomer sets, picked" in words
    assert "ood-000/astronomy" in words


def test_long_answers_are_cut_with_a_note(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=12)
    edit_lines(run / "predictions.jsonl", lambda line: line.update(output="y" * 60_000))
    html = report(run)
    assert "y" * 1_500 in html
    assert "y" * 1_501 not in html
    assert "Cut here: 58,500 more characters are in the run folder." in html
    assert len(html.encode()) < 1_500_000


def test_undefined_numbers_are_dashes_with_their_reason(make_run: MakeRun) -> None:
    run = make_run("iga")
    empty = {"lcs": None, "lcs_ratio": None, "transfer": None, "all_correct": None, "all_correct_ci95": None}
    edit(run / "results.json", lambda results: [results["splits"][s].update(empty) for s in ("id", "ood")])
    html = report(run)
    words = Page(html).words
    reasons = (
        "– LCS ratio (IGA, tier F (ours)): representations were not measured, or no isomer set is complete.",
        "– Transfer (IGA, tier F (ours)): no set was solved in any domain.",
        "– Solved everywhere (IGA, tier F (ours)): no isomer set is complete.",
    )
    assert all(reason in words for reason in reasons)
    assert "None" not in words
    assert "Consistency beside accuracy" in words  # the student before training still has its ratio


def test_no_lcs_at_all_leaves_the_consistency_plot_out(make_run: MakeRun) -> None:
    run = make_run("iga", before=False)
    edit(run / "results.json", lambda results: [results["splits"][s].update(lcs_ratio=None) for s in ("id", "ood")])
    assert "Consistency beside accuracy" not in Page(report(run)).words


def test_only_a_split_of_the_users_own(make_run: MakeRun) -> None:
    run = make_run("iga")

    def rename(results: dict[str, Any]) -> None:
        for key in ("splits", "before"):
            results[key] = {"my own": results[key]["ood"], "ood": {}}

    edit(run / "results.json", rename)
    edit_lines(run / "predictions.jsonl", lambda line: line.update(split="my own" if line["split"] == "ood" else "id"))
    (run / "problems" / "ood.jsonl").rename(run / "problems" / "my own.jsonl")
    page = Page(report(run))
    assert not [attrs["id"] for _, attrs in page.tags if " " in (attrs.get("id") or "")]
    words = page.words
    assert "On the split my own, training with" in words
    assert "(OOD): after" not in words


def test_a_loss_that_was_not_finite_is_reported(make_run: MakeRun) -> None:
    run = make_run("iga")
    edit_lines(run / "metrics.jsonl", lambda line: line.update(loss=float("nan")) if line["step"] <= 10 else None)
    assert "the training loss was not a finite number at 2 log events" in Page(report(run)).words


def test_what_the_mask_did_and_where_domains_conflict_is_drawn(make_run: MakeRun) -> None:
    run = make_run("iga")
    more = {"noise_share": 0.3, "tangent_kept": 0.9, "conflict_cosine/q_proj": -0.2, "conflict_cosine/up_proj": 0.4}
    edit_lines(run / "metrics.jsonl", lambda line: line.update(more))
    page = report(run)
    mask = re.search(r"<svg[^>]*><title>Mask of [^<]*</title>.*?</svg>", page, re.DOTALL)
    conflict = re.search(r"<svg[^>]*><title>Conflict between domains in [^<]*</title>.*?</svg>", page, re.DOTALL)
    assert mask is not None
    assert conflict is not None
    for words in ("mask density", "keep rate", "noise share", "tangent energy kept"):
        assert words in mask[0]
    assert "q_proj" in conflict[0]
    assert "up_proj" in conflict[0]


def test_traces_of_teachers_have_a_section_of_their_own(make_run: MakeRun) -> None:
    run = make_run("iga")
    assert "<h2>Traces</h2>" not in report(run)
    one = {"traces": 8, "yield": 0.75, "verdicts": {"correct": 6, "wrong": 2}, "mean_tokens": None, "mean_words": 31.6}
    taught = {
        "requests": 9, "answered": 8, "prompt_tokens": 70, "completion_tokens": 400, "cost": 0.0123, "refused": 1,
        "all": one, "by_domain": {"law": one}, "by_teacher": {"server:<big>": one},
        "examples": {"wrong": "row-3 of server:<big>: answers 7 instead of 9"},
        "disagreement": {"a | b": {"problems": 4, "differ": 3}, "a | c": {"problems": 0, "differ": 0}},
    }  # fmt: skip
    (run / "taught").mkdir()
    (run / "taught/teach.json").write_text(json.dumps(taught))
    page = report(run)
    section = page[page.index("<h2>Traces</h2>") : page.index("<h2>Training</h2>")]
    for words in ("8 of 9 requests were answered, 1 refused", "0.0123 in money", "75.0", "wrong answer", "law", ">32<",
                  "server:&lt;big&gt;", "answers 7 instead of 9", "differ in 3 of 4 problems"):  # fmt: skip
        assert words in section
    assert "of 0 problems" not in section
    (run / "taught/teach.json").write_text("{")
    with pytest.raises(UserError, match=r"teach.json is damaged"):
        report(run)


def test_without_a_training_log_the_page_says_so(make_run: MakeRun) -> None:
    run = make_run("iga")
    (run / "metrics.jsonl").unlink()
    assert "the student was not trained in it" in Page(report(run)).words


def test_a_long_training_log_stays_small(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=4)
    lines = [
        {"step": i, "loss": i * 7919 % 101, "loss/law": i * 7907 % 103, "mask_density": 0.5} for i in range(20_000)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(report(run).encode()) < 300_000


def test_unequal_runs_carry_a_caution(pair: Pair) -> None:
    def change(results: dict[str, Any]) -> None:
        results["seed"] = 3
        results["train"]["tokens"] *= 2

    edit(pair[1] / "results.json", change)
    words = Page(report(*pair)).words
    assert "The two runs have different training seeds: 0 (method) and 3 (baseline)." in words
    assert "The budgets differ: 540,000 trained tokens (method) and 1,080,000 (baseline)." in words
    assert "training steps (method)" not in words


def test_unfinished_answers_carry_a_caution(make_run: MakeRun) -> None:
    run = make_run("iga", before=False)
    edit(run / "results.json", lambda results: [results["splits"][s].update(truncated=0.04) for s in ("id", "ood")])
    caution = "Answers that stopped at the length limit count as not correct"
    assert caution not in Page(report(run)).words
    edit(run / "results.json", lambda results: results["splits"]["id"].update(truncated=0.31))
    assert f"{caution}: IGA, tier F (ours) 4.0 % (ood), 31.0 % (id)." in Page(report(run)).words


def test_the_change_of_the_method_gets_its_interval(pair: Pair) -> None:
    change = {split: {"acc_macro": [0.31, 0.27, 0.36]} for split in ("id", "ood")}
    edit(pair[2].parent / "comparison.json", lambda comparison: comparison["differences"].update(before_iga=change))
    words = Page(report(*pair)).words
    assert words.count("+31.0 points 95 % interval +27.0 to +36.0") == 2
    assert "no interval computed" not in words


def test_settings_that_differ_are_listed(pair_html: str) -> None:
    table = pair_html[pair_html.index("Settings in which the two runs differ") :].split("</table>")[0]
    names = re.findall(r'<th scope="row">([^<]*)', table)
    assert names == ["alignment.control", "alignment.name", "alignment.space", "alignment.tau"]


def test_two_runs_of_one_method_are_told_apart_by_their_folders(
    make_run: MakeRun, make_comparison: MakeRun, tmp_path: Path
) -> None:
    run = make_run("iga")
    other = tmp_path / "iga-tau1"
    run.rename(other)
    run = make_run("iga")
    edit(other / "results.json", lambda results: results.update(recipe_hash="other"))
    (tmp_path / "both").mkdir()
    make_comparison(tmp_path / "both", other, run)
    page = Page(report(run, other, tmp_path / "both" / "report.html"))
    assert "IGA, tier F (ours), iga against IGA, tier F (ours), iga-tau1" in page.words


def test_more_seeds_in_the_comparison_are_points_of_their_own(pair: Pair) -> None:
    def points(html: str) -> int:
        start = html.index('<g id="consistency-0-axes_1">')
        return len(re.findall(r"<use ", html[start : html.index("</svg>", start)]))

    one = points(report(*pair))

    def second_seed(comparison: dict[str, Any]) -> None:
        comparison["runs"] += [
            results | {"seed": 1, "recipe_hash": f"{results['method']}-2"} for results in comparison["runs"]
        ]

    edit(pair[2].parent / "comparison.json", second_seed)
    html = report(*pair)
    assert points(html) == one + 2
    assert "means over 2 training seeds" in Page(html).words


def test_pass_at_k_has_a_table_where_several_answers_were_drawn(make_run: MakeRun) -> None:
    run = make_run("iga", before=False)
    write_report(run, baseline=None, command="x", out=run / "report.html")
    assert "pass@" not in (run / "report.html").read_text()
    drawn = {
        "n_samples": 4,
        "pass_at_k": {"1": 0.25, "4": 0.625},
        "pass_at_k_ci95": {"1": [0.2, 0.3], "4": [0.5, 0.75]},
    }
    edit(run / "results.json", lambda results: results["splits"]["ood"].update(drawn))
    lines = (run / "predictions.jsonl").read_text().splitlines()
    second = json.loads(lines[0]) | {"sample": 1, "output": "the second sample of an item"}
    (run / "predictions.jsonl").write_text("\n".join([*lines, json.dumps(second)]) + "\n")
    write_report(run, baseline=None, command="x", out=run / "report.html")
    html = (run / "report.html").read_text()
    row = html[html.index('<th scope="row">pass@4') :].split("</tr>")[0]
    assert "62.5" in row
    assert "50.0\N{EN DASH}75.0" in row
    assert "estimated from 4 per problem" in row
    assert "the second sample" not in html


def test_why_answers_were_not_right_has_a_table_where_it_was_counted(make_run: MakeRun) -> None:
    run = make_run("iga", before=False)
    write_report(run, baseline=None, command="x", out=run / "report.html")
    assert "Why answers were not right" not in (run / "report.html").read_text()
    edit(run / "results.json", lambda results: results["splits"]["ood"].update(reasons={"ran out of time": 7}))
    write_report(run, baseline=None, command="x", out=run / "report.html")
    html = (run / "report.html").read_text()
    row = html[html.index('<th scope="row">ran out of time') :].split("</tr>")[0]
    assert ">7<" in row.replace("\n", "")
