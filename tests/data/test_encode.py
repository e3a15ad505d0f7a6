from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isodistill.data.encode import IGNORE_INDEX, encode_prompt, encode_row, encode_rows
from isodistill.data.rows import Row, RowError
from isodistill.errors import UserError

ROW = Row(id="r1", prompt="6 x 4?", completion="The answer is 24.", domain="law", set_id="s1", weight=0.5)
PROMPT_TEXT = "<|user|>6 x 4?<|end|><|assistant|>"


def trained_text(encoded: Any, tokenizer: Any) -> str:
    return tokenizer.decode([i for i in encoded.labels if i != IGNORE_INDEX])


def test_ids_are_template_prompt_completion_and_end(tokenizer: Any) -> None:
    encoded = encode_row(ROW, tokenizer, max_length=64)
    assert tokenizer.decode(encoded.input_ids) == PROMPT_TEXT + "The answer is 24.<|end|>"
    assert trained_text(encoded, tokenizer) == "The answer is 24.<|end|>"
    assert (encoded.row_id, encoded.domain, encoded.set_id, encoded.weight) == ("r1", "law", "s1", 0.5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(prompt=st.text(min_size=1), completion=st.text(min_size=1))
def test_the_border_is_exact_for_any_text(tokenizer: Any, prompt: str, completion: str) -> None:
    row = Row(id="x", prompt=prompt, completion=completion)
    encoded = encode_row(row, tokenizer, max_length=10_000)
    start = encode_prompt(row, tokenizer, 10_000)
    assert encoded.input_ids[: len(start)] == start
    assert encoded.labels[: len(start)] == [IGNORE_INDEX] * len(start)
    assert encoded.labels[len(start) :] == encoded.input_ids[len(start) :]
    assert trained_text(encoded, tokenizer).endswith("<|end|>")
    assert encode_rows([row], tokenizer, 10_000)[0] == [encoded]


def test_text_that_looks_like_two_tokens_merged_is_not_merged_over_the_border(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    together = tokenizer("The answer")["input_ids"]
    encoded = encode_row(Row(id="x", prompt="The", completion=" answer"), tokenizer, max_length=64)
    assert tokenizer.decode(encoded.input_ids) == "The\n answer<|end|>"
    assert together == encoded.input_ids[:1] + encoded.input_ids[2:-1]


def test_messages_are_rendered_as_they_are(tokenizer: Any) -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 x 4?"})
    ids = encode_prompt(Row(id="m", prompt=messages), tokenizer, 64)
    assert tokenizer.decode(ids) == "<|system|>Be brief.<|end|><|user|>6 x 4?<|end|><|assistant|>"
    assert encode_prompt(Row(id="s", prompt=messages[1:]), tokenizer, 64) == encode_prompt(ROW, tokenizer, 64)


def test_without_a_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    assert tokenizer.decode(encode_prompt(ROW, tokenizer, 64)) == "6 x 4?\n"
    with pytest.raises(RowError, match="row m: column 'prompt' holds messages"):
        encode_prompt(Row(id="m", prompt=({"role": "user", "content": "x"},)), tokenizer, 64)


def test_plain_text_starts_as_the_tokenizer_starts_it(tokenizer: Any) -> None:
    from tokenizers import processors

    tokenizer.add_special_tokens({"bos_token": "<|system|>"})
    template, tokenizer.chat_template = tokenizer.chat_template, None
    without = encode_prompt(ROW, tokenizer, 64)
    assert without[0] != tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.bos_token_id)]
    )
    assert encode_prompt(ROW, tokenizer, 64) == [tokenizer.bos_token_id, *without]
    assert encode_row(ROW, tokenizer, max_length=64).input_ids[:2] == [tokenizer.bos_token_id, without[0]]
    tokenizer.chat_template = template  # which writes its own start
    assert tokenizer.decode(encode_prompt(ROW, tokenizer, 64)) == PROMPT_TEXT


def test_a_row_that_fits_exactly_and_one_token_more(tokenizer: Any) -> None:
    length = len(encode_row(ROW, tokenizer, max_length=64).input_ids)
    assert len(encode_row(ROW, tokenizer, max_length=length).input_ids) == length
    with pytest.raises(RowError, match=f"completion' is too long: .* max_length {length - 1}"):
        encode_row(ROW, tokenizer, max_length=length - 1)


def test_a_prompt_longer_than_the_context(tokenizer: Any) -> None:
    length = len(encode_prompt(ROW, tokenizer, 64))
    assert len(encode_prompt(ROW, tokenizer, length)) == length
    with pytest.raises(RowError, match=f"prompt' has {length} tokens, more than max_length {length - 1}"):
        encode_prompt(ROW, tokenizer, length - 1)
    with pytest.raises(RowError, match="prompt' is too long"):
        encode_row(ROW, tokenizer, max_length=length)


def test_a_row_without_a_trained_token(tokenizer: Any) -> None:
    with pytest.raises(RowError, match="completion' is missing"):
        encode_row(Row(id="x", prompt="p"), tokenizer, max_length=64)
    with pytest.raises(RowError, match="completion' has no token to train on"):
        encode_row(Row(id="x", prompt="p", completion=""), tokenizer, max_length=64)


def test_a_template_that_refuses_a_role(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(RowError, match="not taken by the chat template: System role not supported"):
        encode_prompt(ROW, tokenizer, 64)


def test_a_tokenizer_without_an_end(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        encode_row(ROW, tokenizer, max_length=64)


def test_rows_left_out_are_listed_and_only_faults_count(tokenizer: Any, tmp_path: Any) -> None:
    rows = [
        Row(id="good", prompt="p", completion="c"),
        Row(id="test only", prompt="p"),
        Row(id="wrong", prompt="p", completion="c", valid=False),
        Row(id="unjudged", prompt="p", completion="c", valid=None),
        Row(id="long", prompt="p", completion="c" * 100),
    ]
    encoded, left_out = encode_rows(rows, tokenizer, 20, max_refused=1 / 3, refused_to=tmp_path / "refused.jsonl")
    assert [e.row_id for e in encoded] == ["good", "unjudged"]
    assert [(r.source, r.line, r.column) for r in left_out] == [
        ("test only", None, "completion"),
        ("wrong", None, "valid"),
        ("long", None, "completion"),
    ]
    assert "long" in (tmp_path / "refused.jsonl").read_text()
    with pytest.raises(UserError, match=r"1 of 3 rows cannot be used.*\n  long, column completion: is too long"):
        encode_rows(rows, tokenizer, 20, max_refused=0.3)


def test_no_row_left_to_train_on(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"left to train on; 1 were left out.*x, column completion: is missing"):
        encode_rows([Row(id="x", prompt="p")], tokenizer, 64)
    with pytest.raises(UserError, match="No row is left"):
        encode_rows([], tokenizer, 64)


def test_the_answer_is_found_where_the_completion_tells_it_last(tokenizer: Any) -> None:
    def told(completion: str, answer: str, answer_type: Any = "number") -> str | None:
        row = Row(id="x", prompt="6 x 4?", completion=completion, answer=answer, answer_type=answer_type)
        encoded = encode_row(row, tokenizer, max_length=10_000)
        assert encode_rows([ROW, row], tokenizer, 10_000)[0][1] == replace(encoded, place=1)
        if encoded.answer_at is None:
            return None
        start, stop = encoded.answer_at
        assert all(label != IGNORE_INDEX for label in encoded.labels[start:stop])
        assert "answer" not in tokenizer.decode(encoded.input_ids[stop:])
        return str(tokenizer.decode(encoded.input_ids[start:stop])).strip()

    assert told("24 is 24. The answer is 24.", "24") == "24"
    assert told("124, 24.5, 3.24 or 240.", "24") is None
    assert told("It is so. The answer is yes.", "yes", "yesno") == "yes"
    assert encode_row(ROW, tokenizer, max_length=64).answer_at is None  # the row has no answer
