"""The server that adds as a fixture, a key in the environment, and short waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from isodistill.teachers import pace

from .loopback import Adder, serving

KEY = "secret-key-that-appears-nowhere"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("TEACHER_KEY", KEY)


@pytest.fixture
def adder() -> Iterator[tuple[Any, str]]:
    """A server that adds (its class, for what it was asked), and its address."""
    pytest.importorskip("openai")
    with serving(Adder) as running:
        yield running
