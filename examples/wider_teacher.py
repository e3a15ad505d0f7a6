"""A teacher to try examples/flexkd.yaml with: the student itself and loud dimensions that its head ignores.

    python examples/wider_teacher.py runs/wider [smollm2-135m]

The last layer writes noise into the new dimensions, the final norm makes it ten times louder, and the head has weights
of 0 there: Flex-KD has to find the student's own dimensions again. The noise changes the norm a little, so the teacher
answers almost as the student does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from isodistill.models.load import load_student


def main() -> None:
    """Build it and write the folder."""
    folder = Path(sys.argv[1])
    student = load_student(sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m")
    config: dict[str, Any] = student.model.config.to_dict()
    narrow = config["hidden_size"]
    extra = narrow // 8
    config |= {"hidden_size": narrow + extra, "head_dim": narrow // config["num_attention_heads"]}
    wide = LlamaForCausalLM(LlamaConfig(**config | {"tie_word_embeddings": False}))
    own = student.model.state_dict()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            # Norms divide by the mean square, which zeros make smaller: their gain makes up for it.
            fill = (narrow / (narrow + extra)) ** 0.5 if "norm" in name else 1.0
            weight.zero_()
            weight[tuple(slice(n) for n in own[name].shape)] = fill * own[name]
        last = wide.model.layers[-1].mlp.down_proj.weight
        last[narrow:] = 0.3 * last[:narrow].std() * torch.randn(extra, last.shape[1])
        gain = wide.model.norm.weight
        gain[narrow:] = 10 * gain[:narrow].mean()
    wide.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    print(f"{folder}: {narrow + extra} wide, {extra} of them noise")


if __name__ == "__main__":
    main()
