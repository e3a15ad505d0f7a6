"""Which teachers share their token ids with a student: the vocabulary rules of objectives on log-probs."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import TYPE_CHECKING

from isodistill.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["common_vocabulary", "template_hash", "tokenizer_hash"]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of what every id means: the vocabulary with its added tokens, in the order of the ids."""
    return _sha256(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of the chat template; a tokenizer without one has a hash of its own, too."""
    return _sha256(tokenizer.chat_template)


def common_vocabulary(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    n_student: int,
    n_teacher: int,
    *,
    truncate: bool = False,
) -> int:
    """How many ids, counted from 0, mean the same to both; logits are cut to them *before* the softmax.

    The tokenizers must give every id the same token. Rows of the embeddings past the last token (padding to a round
    size) may differ in number only with ``truncate``. Different special tokens or chat templates are warned about.

    Args:
        student: tokenizer of the student.
        teacher: tokenizer of the teacher.
        n_student: rows of the student's output layer (``config.vocab_size``).
        n_teacher: rows of the teacher's.
        truncate: allow different numbers of rows.

    Raises:
        UserError: an id has two meanings, or the sizes differ without ``truncate``.
    """
    ours = {index: token for token, index in student.get_vocab().items()}
    theirs = {index: token for token, index in teacher.get_vocab().items()}
    n_common = min(n_student, n_teacher)
    differing = [i for i in range(n_common) if ours.get(i) != theirs.get(i)]
    if differing:
        first = ", ".join(f"{i} is {ours.get(i)!r} and {theirs.get(i)!r}" for i in differing[:3])
        raise UserError(
            f"Student and teacher have different tokenizers: {len(differing)} of {n_common} ids differ (student, then "
            f"teacher: id {first}). Log-probs of this teacher mean nothing to this student; learn from its texts "
            "instead (objective ce on traces)."
        )
    if n_student != n_teacher and not truncate:
        raise UserError(
            f"The student scores {n_student} ids and the teacher {n_teacher}, though their tokenizers agree. Pass "
            f"truncate to compare the first {n_common} ids alone."
        )
    _warn_of_different_specials(student, teacher)
    return n_common


def _warn_of_different_specials(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    ours, theirs = set(student.all_special_ids), set(teacher.all_special_ids)
    if ours != theirs:
        warnings.warn(f"Special ids of only one of student and teacher: {sorted(ours ^ theirs)}.", stacklevel=3)
    if student.chat_template != teacher.chat_template:
        warnings.warn("Student and teacher have different chat templates; the student's is used.", stacklevel=3)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")).hexdigest()
