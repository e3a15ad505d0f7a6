from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.sandbox.wire import MOST_BYTES, Closed, TooLong, decoded, encoded, receive, send

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
LEAVES |= st.complex_numbers(allow_nan=False)
HASHABLE = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(HASHABLE, inner) | st.sets(HASHABLE)
        | st.frozensets(HASHABLE)
    ),
    max_leaves=20,
)  # fmt: skip


def never(*arguments: Any) -> Any:
    raise AssertionError(f"{arguments} is plain")


@given(VALUES)
def test_plain_values_come_back_as_they_were_with_their_types(value: Any) -> None:
    back = decoded(json.loads(json.dumps(encoded(value, never))), never)
    assert back == value
    assert repr(type(back)) == repr(type(value))


def test_numbers_without_end_and_numbers_that_are_none_come_back() -> None:
    huge = 7**20000
    assert decoded(json.loads(json.dumps(encoded(huge, never))), never) == huge
    nan, infinity = decoded(json.loads(json.dumps(encoded([float("nan"), float("-inf")], never))), never)
    assert nan != nan
    assert infinity == float("-inf")


def test_subclasses_become_the_plain_type() -> None:
    back = decoded(encoded([Counter("aab"), OrderedDict(a=1), bytearray(b"x")], never), never)
    assert back == [{"a": 2, "b": 1}, {"a": 1}, b"x"]
    assert [type(one) for one in back] == [dict, dict, bytes]


def test_built_in_types_and_no_other_built_ins_are_plain() -> None:
    assert decoded(encoded([int, ValueError], never), never) == [int, ValueError]
    assert encoded(len, lambda value: "held") == encoded(Counter, lambda value: "held") == "held"
    assert decoded(["type", "eval"], lambda kind, content: "held") == "held"


def test_what_is_not_plain_goes_through_the_callers() -> None:
    assert encoded([object()], lambda value: ["held", 3]) == ["list", [["held", 3]]]
    assert decoded(["list", [["held", 3]]], lambda kind, content: (kind, content)) == [("held", 3)]


@pytest.mark.parametrize("message", [{"a": 1}, ["list"], ["int", "zz"], ["dict", [["list", []], 1]], [1, 2, 3]])
def test_what_is_no_value_is_an_error_and_runs_nothing(message: Any) -> None:
    def refuse(kind: Any, content: Any) -> Any:
        raise ValueError(kind)

    with pytest.raises((ValueError, TypeError)):
        decoded(message, refuse)


def test_a_message_is_read_whole_and_nothing_after_it() -> None:
    reading, writing = os.pipe()
    send(writing, ["a" * 1000])
    send(writing, "second")
    assert receive(reading) == ["a" * 1000]
    assert receive(reading) == "second"
    os.close(writing)
    with pytest.raises(Closed):
        receive(reading)
    os.close(reading)


def test_too_long_a_message_is_refused_on_both_sides() -> None:
    reading, writing = os.pipe()
    with pytest.raises(TooLong):
        send(writing, "x" * MOST_BYTES)
    os.write(writing, (MOST_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(TooLong):
        receive(reading)
    os.close(reading)
    with pytest.raises(Closed):
        send(writing, 1)
    os.close(writing)
