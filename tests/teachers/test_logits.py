"""The cache of a teacher's log-probs against the live teacher, a loop in float64, and damage."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isodistill.data.encode import Encoded, encode_row
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.models.load import Student
from isodistill.models.tiny import make_tiny_student
from isodistill.teachers.logits import CacheMaker, LogitCache, distance, fill_cache, made_by, top_k, trained_positions
from isodistill.teachers.vocabulary import common_vocabulary, tokenizer_hash

TEXTS = [
    ("Two and two?", "2 + 2 = 4. The answer is 4."),
    ("Half of ten, says who?", "5."),
    ("Nine less one", "9 - 1 = 8"),
]


@pytest.fixture(scope="module")
def teacher() -> Student:
    return make_tiny_student([f"{question} {answer}" for question, answer in TEXTS], seed=3)


@pytest.fixture(scope="module")
def rows(teacher: Student) -> list[Encoded]:
    pairs = enumerate(TEXTS)
    made = [Row(id=str(i), prompt=question, completion=answer) for i, (question, answer) in pairs]
    return [encode_row(row, teacher.tokenizer, max_length=64) for row in made]


def maker(teacher: Student) -> CacheMaker:
    return made_by("tiny", "seed 3", teacher.tokenizer, teacher.model.config.vocab_size)


def live_logits(teacher: Student, row: Encoded) -> torch.Tensor:
    with torch.no_grad():
        return teacher.model.eval()(input_ids=torch.tensor([row.input_ids])).logits[0, trained_positions(row)]


@pytest.mark.parametrize("k", [4, 64, 100_000])
def test_cached_is_live(teacher: Student, rows: list[Encoded], tmp_path: Path, k: int) -> None:
    cache = LogitCache(tmp_path, maker(teacher), k=k)
    assert fill_cache(cache, teacher.model, rows, batch_size=2) == 3
    again = LogitCache(tmp_path, maker(teacher), k=k)
    assert fill_cache(again, teacher.model, rows) == 0
    n_vocab = maker(teacher).n_vocab
    for row in rows:
        logits = live_logits(teacher, row)
        cached = again.read(row.input_ids)
        live = top_k(logits, trained_positions(row), min(k, n_vocab), n_vocab=n_vocab)
        gap = distance(cached, live)
        assert gap.log_prob <= 2**-11 * float(live.log_probs.abs().max()) + 1e-5  # half a unit of float16
        assert gap.tail <= 1e-6
        assert torch.equal(cached.positions, trained_positions(row))


def test_no_more_than_a_piece_of_the_logits_exists(teacher: Student, tmp_path: Path) -> None:
    long = [Row(id=str(n), prompt="Two and two?", completion=f"{n} " * 150) for n in range(3)]
    encoded = [encode_row(row, teacher.tokenizer, max_length=512) for row in long]
    sizes: list[int] = []
    hook = teacher.model.lm_head.register_forward_hook(lambda module, args, out: sizes.append(out.shape[:-1].numel()))
    try:
        fill_cache(LogitCache(tmp_path, maker(teacher)), teacher.model, encoded)
    finally:
        hook.remove()
    assert max(sizes) <= 256
    assert sum(sizes) == sum(len(trained_positions(row)) for row in encoded) > 3 * 256


def test_logits_that_are_not_finite_name_their_row_and_position(
    teacher: Student, rows: list[Encoded], tmp_path: Path
) -> None:
    broken = copy.deepcopy(teacher.model)
    (nine,) = teacher.tokenizer("9", add_special_tokens=False)["input_ids"]
    broken.model.embed_tokens.weight.data[nine] = math.nan
    first = int(trained_positions(rows[2])[0])  # masked attention carries a NaN to every earlier position, too
    with pytest.raises(UserError, match=rf"Row 2: .* not finite at position {first} of its .* load it in float32"):
        fill_cache(LogitCache(tmp_path, maker(teacher)), broken, rows[1:])


def test_log_probs_are_those_of_the_whole_softmax() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.5, 2.0, 40.0]])
    top = top_k(logits, torch.tensor([7]), 2, n_vocab=4, temperature=2.0)
    weights = [math.exp(value / 2) for value in (3.0, -1.0, 0.5, 2.0)]  # the fifth id is cut off before the softmax
    assert top.ids.tolist() == [[0, 3]]
    assert top.log_probs[0].tolist() == pytest.approx([math.log(weights[i] / sum(weights)) for i in (0, 3)], abs=1e-6)
    assert float(top.log_tail) == pytest.approx(math.log((weights[1] + weights[2]) / sum(weights)), abs=1e-6)


def test_a_tiny_tail_and_no_tail_are_told_apart() -> None:
    logits = torch.tensor([[0.0, -60.0, -61.0]])
    small = top_k(logits, torch.tensor([0]), 1, n_vocab=3).log_tail
    assert float(small) == pytest.approx(math.log(math.exp(-60) + math.exp(-61)), rel=1e-5)
    assert float(top_k(logits, torch.tensor([0]), 3, n_vocab=3).log_tail) == -math.inf


def test_the_distance_sees_a_changed_value(teacher: Student, rows: list[Encoded]) -> None:
    live = top_k(live_logits(teacher, rows[0]), trained_positions(rows[0]), 8, n_vocab=50)
    assert distance(live, live) == (0.0, 0.0)
    moved = live.log_probs.clone()
    moved[1, 2] -= 0.25
    assert distance(live._replace(log_probs=moved), live).log_prob == pytest.approx(0.25)
    assert distance(live._replace(log_tail=live.log_tail - 1.0), live).tail > 0.0
    with pytest.raises(ValueError, match="different positions"):
        distance(live, live._replace(positions=live.positions + 1))


def test_many_shards_read_back_in_any_order(teacher: Student, rows: list[Encoded], tmp_path: Path) -> None:
    one = LogitCache(tmp_path / "one", maker(teacher))
    many = LogitCache(tmp_path / "many", maker(teacher), shard_tokens=1)
    for cache in (one, many):
        fill_cache(cache, teacher.model, rows)
    assert len(list((tmp_path / "many").glob("shard-*"))) == 3
    for row in reversed(rows):
        for left, right in zip(one.read(row.input_ids).tensors, many.read(row.input_ids).tensors, strict=True):
            assert torch.equal(left, right)


def test_an_unknown_text_is_an_error(teacher: Student, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no log-probs of tiny for a text of 2 tokens"):
        LogitCache(tmp_path, maker(teacher)).read([1, 2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer": "0" * 64}, "tokenizer was"),
        ({"teacher": "other"}, "teacher was 'tiny' and is 'other'"),
        ({"temperature": 2.0}, "temperature was 1.0 and is 2.0"),
        ({"template": "x"}, "template was"),
    ],
)
def test_another_maker_is_refused(
    teacher: Student, rows: list[Encoded], tmp_path: Path, change: dict[str, str], said: str
) -> None:
    fill_cache(LogitCache(tmp_path, maker(teacher)), teacher.model, rows)
    with pytest.raises(UserError, match=said):
        LogitCache(tmp_path, replace(maker(teacher), **change))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="k was 64 and is 8"):
        LogitCache(tmp_path, maker(teacher), k=8)


@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "index"])
def test_damage_is_named(teacher: Student, rows: list[Encoded], tmp_path: Path, damage: str) -> None:
    fill_cache(LogitCache(tmp_path, maker(teacher)), teacher.model, rows)
    shard, index = tmp_path / "shard-00000.safetensors", tmp_path / "index.json"
    data = shard.read_bytes()
    if damage == "flipped":
        shard.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "short":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "gone":
        shard.unlink()
    else:
        index.write_text(index.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        LogitCache(tmp_path, maker(teacher)).read(rows[0].input_ids)


def test_one_tokenizer_with_padded_rows_may_be_cut(teacher: Student) -> None:
    tokenizer = teacher.tokenizer
    n = len(tokenizer)
    assert common_vocabulary(tokenizer, tokenizer, n, n) == n
    assert common_vocabulary(tokenizer, tokenizer, n, n + 128, truncate=True) == n
    with pytest.raises(UserError, match=f"scores {n} ids and the teacher {n + 128}"):
        common_vocabulary(tokenizer, tokenizer, n, n + 128)


def test_a_permuted_vocabulary_is_refused(teacher: Student) -> None:
    other = make_tiny_student(["entirely other words were learned here"], seed=3).tokenizer
    assert tokenizer_hash(other) != tokenizer_hash(teacher.tokenizer)
    with pytest.raises(UserError, match="different tokenizers"):
        common_vocabulary(teacher.tokenizer, other, 300, 300, truncate=True)


def test_another_template_is_warned_about(teacher: Student) -> None:
    other = make_tiny_student([f"{question} {answer}" for question, answer in TEXTS], seed=3).tokenizer
    other.chat_template = "{{ messages[0].content }}"
    with pytest.warns(UserWarning, match="different chat templates"):
        common_vocabulary(teacher.tokenizer, other, 300, 300)
