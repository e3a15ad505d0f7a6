"""Label and rationale as two tasks of one student: distilling step-by-step (arXiv 2305.02301).

A row with a trace gives two sequences, told apart by a prefix of the question:

    predict: QUESTION -> answer          explain: QUESTION -> rationale
    L = alpha mean CE(answer) + (1 - alpha) mean CE(rationale)

Each mean is over its own tokens of the whole optimizer step (of a domain, where the alignment keeps domains apart). The
paper writes L_label + lam L_rationale; alpha = 1 / (1 + lam) up to scale, as in the authors' code. Inference asks for
the label alone, so the rationale costs nothing there. The paper's students are encoder-decoders; in a decoder the
prefix stands in the user's turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from isodistill.data.rows import ANSWER_SENTENCE, Prompt, Row
from isodistill.objectives.ce import CrossEntropy

__all__ = ["LabelMultitask"]

_LABEL, _RATIONALE = "label", "rationale"
_CLOSING = re.compile(r"\s*The answer is [^\n]*$")


@dataclass
class LabelMultitask(CrossEntropy):
    """See the module.

    Args:
        alpha: share of the label; 1 is fine-tuning on the answers alone, 0 on the rationales alone; default 0.5.
        label_prefix: before the question, in training and whenever the student is asked.
        rationale_prefix: before the question, in training alone.
    """

    alpha: float = 0.5
    label_prefix: str = "predict: "
    rationale_prefix: str = "explain: "

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha:g}; it must be between 0 and 1")
        if self.label_prefix == self.rationale_prefix:
            raise ValueError(
                f"label_prefix and rationale_prefix are both {self.label_prefix!r}; they tell two tasks apart"
            )

    def expand(self, rows: Iterable[Row]) -> list[Row]:
        """The rows of both tasks, ids with the task at their end; a trace that is all answer gives no rationale.

        Rows without a completion, or known to be wrong, are left as they are, to be refused by name.
        """
        out = []
        for row in rows:
            if row.completion is None or row.valid is False:
                out.append(row)
                continue
            label, rationale = self.asked(row), ""
            if row.answer is not None:
                rationale = _CLOSING.sub("", row.completion).strip()
                label = replace(label, completion=ANSWER_SENTENCE.format(answer=row.answer))
            out.append(replace(label, id=f"{row.id}/{_LABEL}"))
            if rationale:
                prompt = _prefixed(row.prompt, self.rationale_prefix)
                out.append(replace(row, id=f"{row.id}/{_RATIONALE}", prompt=prompt, completion=rationale))
        return out

    def asked(self, row: Row) -> Row:
        """The row as the student is asked for its label."""
        return replace(row, prompt=_prefixed(row.prompt, self.label_prefix))

    def share(self, row_id: str) -> tuple[str, float]:
        """The task of an expanded row, and its factor in the loss."""
        task = row_id.rpartition("/")[2]
        return task, self.alpha if task == _LABEL else 1 - self.alpha


def _prefixed(prompt: Prompt, prefix: str) -> Prompt:
    """The prompt with a prefix on the user's last turn."""
    if isinstance(prompt, str):
        return prefix + prompt
    *earlier, last = prompt
    return (*earlier, {"role": last["role"], "content": prefix + last["content"]})
