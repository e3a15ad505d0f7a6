"""The least time that this machine needs for a training step and a decoding step, and what share of it we reach.

Two ceilings are measured: the rate of matrix products at the student's shapes (packed weights or plain, whichever is
faster) and the bandwidth of the memory. Counted for SmolLM2-135M, LoRA r = 16 on all linear layers, bf16:

    training step   products with frozen weights, forward and for the gradient of the input (no gradient of the weight,
                    and none of the first layer's input); LoRA's three pairs of thin products; causal attention, forward
                    and backward; the head on trained positions only. Everything else is taken to cost nothing.
    decoding step   the larger of FLOPs / rate and (bytes of the weights + bytes of the cache) / bandwidth.

Run ``python -m benchmarks.floor [--quick]``. Ceilings and steps are measured in turns, and medians count.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.training import SETS, StepTimer, clock, isomer_rows, ours
from isodistill.data.encode import IGNORE_INDEX, Encoded, encode_rows
from isodistill.evaluation.llama import LlamaDecoder
from isodistill.models.frozen import FrozenLinear
from isodistill.models.load import load_student

RANK = 16
CONTEXT = 128  # cached positions of a decoding row
BATCHES = (1, 16, 64)


def run(quick: bool) -> dict[str, float]:
    """Print ceilings, floors and shares; return ``sft_share_of_floor``."""
    student = load_student("smollm2-135m")
    rows = isomer_rows(SETS)
    encoded, _ = encode_rows(rows, student.tokenizer, 512)
    repeats = 3 if quick else 5
    trainer, timer = ours(student, rows, "erm_pooled"), StepTimer()
    trainer.add_callback(timer)
    n_tokens = sum(len(e.input_ids) for e in encoded)
    shapes, bandwidth = layer_shapes(student.model), []
    products = {dtype: Products(shapes, n_tokens, dtype) for dtype in (torch.bfloat16, torch.float32)}
    for _ in range(repeats):
        for measured in products.values():
            measured.measure()
        bandwidth.append(bytes_per_second())
        trainer.train()
        del timer.seconds[-2]  # the first step of a turn fills caches
    for dtype, measured in products.items():
        print(f"products at the student's shapes, {n_tokens} tokens, {dtype}: {measured.rate / 1e9:.0f} GFLOP/s")
    memory = statistics.median(bandwidth)
    print(f"memory: {memory / 1e9:.1f} GB/s")
    flops = training_flops(student.model, encoded)
    floor, reached = sum(flops.values()) / products[torch.bfloat16].rate, statistics.median(timer.seconds)
    print("training step: " + ", ".join(f"{name} {value / 1e9:.0f}" for name, value in flops.items()) + " GFLOP")
    print(f"training step: floor {floor:.2f} s, ours {reached:.2f} s, share {floor / reached:.2f}")
    decoding(student.model.to(torch.bfloat16).eval(), memory, repeats)
    return {"sft_share_of_floor": floor / reached}


class Products:
    """The frozen products of all decoder layers in one training step, nothing else."""

    def __init__(self, shapes: list[tuple[int, int]], n_tokens: int, dtype: torch.dtype) -> None:
        self.flops = sum(4 * n_tokens * m * n for m, n in shapes)
        weights = [torch.randn(m, n).to(dtype) for m, n in shapes]
        self.inputs = {n: torch.randn(n_tokens, n).to(dtype) for shape in shapes for n in shape}
        packed = [FrozenLinear(w, None, dtype) for w in weights]
        self.ways: list[Callable[[], None]] = [
            lambda: self._all([(p.forward, p.backward) for p in packed], shapes),
            lambda: self._all([(lambda x, w=w: x @ w.T, lambda d, w=w: d @ w) for w in weights], shapes),
        ]
        self.seconds: list[list[float]] = [[] for _ in self.ways]

    def measure(self) -> None:
        """One more timing of every way."""
        for way, seconds in zip(self.ways, self.seconds, strict=True):
            seconds.append(timed(way))

    @property
    def rate(self) -> float:
        """FLOP/s of the faster way."""
        return self.flops / min(statistics.median(seconds) for seconds in self.seconds)

    def _all(self, pairs: list[tuple[Callable[[Tensor], Tensor], ...]], shapes: list[tuple[int, int]]) -> None:
        for (forward, backward), (m, n) in zip(pairs, shapes, strict=True):
            forward(self.inputs[n])
            backward(self.inputs[m])


def layer_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """(m, n) of the frozen products of every layer; those with one input count as one."""
    shapes = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv, gate_up = [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]
        groups = [qkv, [attention.o_proj], gate_up, [mlp.down_proj]]
        shapes += [(sum(m.out_features for m in group), group[0].in_features) for group in groups]
    return shapes


def training_flops(model: PreTrainedModel, encoded: list[Encoded]) -> dict[str, float]:
    """FLOPs of one optimizer step over the given rows."""
    config, shapes = model.config, layer_shapes(model)
    lengths = [len(e.input_ids) for e in encoded]
    trained = sum(label != IGNORE_INDEX for e in encoded for label in e.labels[1:])
    linears = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    n_lora = RANK * sum(m.in_features + m.out_features for m in linears)
    n_frozen, n_first = sum(m * n for m, n in shapes), shapes[0][0] * shapes[0][1]
    width = config.hidden_size  # heads times their size
    return {
        "frozen": 2.0 * sum(lengths) * (2 * n_frozen - n_first),
        "LoRA": 6.0 * sum(lengths) * n_lora,
        # Two products forward and four backward over the half of the scores that are not masked.
        "attention": 6.0 * config.num_hidden_layers * width * sum(length**2 for length in lengths),
        "head": 4.0 * trained * config.vocab_size * width,
    }


def decoding(model: PreTrainedModel, memory: float, repeats: int) -> None:
    """Print floor and share of a decoding step for each batch, after ``CONTEXT`` positions."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * size * CONTEXT
    linear = [*layer_shapes(model), (config.vocab_size, config.hidden_size)]
    n_weights = sum(m * n for m, n in linear)
    for batch in BATCHES:
        decoder = LlamaDecoder(model, batch)
        decoder.prefill([[1] * CONTEXT] * batch)
        rate = Products(linear, batch, torch.bfloat16)
        seconds = []
        for _ in range(3 * repeats):
            rate.measure()
            with torch.no_grad():
                seconds.append(timed(lambda d=decoder, b=batch: d.step([1] * b)))
        floor = max(2 * n_weights * batch / rate.rate, (2 * n_weights + cache * batch) / memory)
        reached = statistics.median(seconds)
        print(
            f"decoding step, batch {batch:2}: floor {1e3 * floor:.1f} ms ({batch / floor:.0f} tokens/s), "
            f"ours {1e3 * reached:.1f} ms, share {floor / reached:.2f}"
        )


def bytes_per_second() -> float:
    """Reading: the maximum of 512 MB, which no cache holds."""
    x = torch.zeros(1 << 27)
    return x.numel() * 4 / timed(lambda: x.amax())


def timed(work: Callable[[], object]) -> float:
    """Seconds of the second of two calls."""
    work()
    start = clock()
    work()
    return clock() - start


if __name__ == "__main__":
    print(run("--quick" in sys.argv[1:]))
