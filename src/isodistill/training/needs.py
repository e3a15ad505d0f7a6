"""What the chosen method needs against what there is, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from torch import nn

from isodistill.alignment import Alignment, Penalised
from isodistill.errors import UserError
from isodistill.models.lora import lora_variants, segment_obstacles
from isodistill.objectives import VCRD, Distillation, Objective
from isodistill.training.config import DistillConfig

__all__ = ["takes_segments"]


def takes_segments(
    model: PeftModel,
    args: DistillConfig,
    alignment: Alignment,
    domains: Sequence[str],
    also: Sequence[str],
    objective: Objective,
) -> bool:
    """Whether the K gradients come from one backward (``segment``) or from one for each domain.

    ``also``: what else was found missing, for the one error.

    Raises:
        UserError: the method cannot be trained so; all that is missing is listed at once.
    """
    missing = list(also)
    if alignment.needs_domains and len(domains) < 2:
        missing.append(
            f"{args.method} compares domains, but the training rows have {len(domains)} ({', '.join(domains)}); give "
            "the rows a `domain` column with at least two values"
        )
    obstacles = segment_obstacles(model)
    needs_segments = args.gradients == "segment" or alignment.needs_weight_gradients or args.shard_base
    if needs_segments and obstacles:
        missing.append("per-domain gradients in one backward need plain LoRA linears: " + "; ".join(obstacles[:5]))
    if alignment.needs_weight_gradients and args.gradients == "domain_major":
        missing.append("masks on the weight gradient need gradients: segment")
    twice = isinstance(objective, VCRD) and objective.needs_whole_step and objective.step_settings is None
    if (isinstance(alignment, Penalised) or twice) and any(
        isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()
    ):
        missing.append(f"{args.method} sees every batch twice, alike: set the dropout of LoRA and model to 0")
    if alignment.needs_fp32 and args.bf16:
        missing.append(f"{args.method} subtracts gradients that nearly agree: set train.bf16 to false")
    variants = lora_variants(model)
    if variants and getattr(alignment, "space", "factor") != "factor":
        missing.append(f"IGA masks W = W0 + s B A, but {variants[0]}; choose alignment.space factor, or plain LoRA")
    if args.fp16:
        missing.append("fp16 scales the loss, and gradients of domains are compared unscaled: set train.bf16 instead")
    if args.fsdp or args.deepspeed:
        missing.append(
            "parameters sharded by FSDP or DeepSpeed cannot be trained, because the gradients of every domain are "
            "gathered in buffers of the whole adapter; start plain processes, with train.shard_base where the frozen "
            "model is too large for one"
        )
    if args.shard_base:
        missing += _cannot_shard(args, alignment, objective)
    if missing:
        raise UserError("This training cannot start. " + " Also: ".join(f"{one.rstrip('.')}." for one in missing))
    return needs_segments or (args.gradients == "auto" and not obstacles)


def _cannot_shard(args: DistillConfig, alignment: Alignment, objective: Objective) -> list[str]:
    """Why a frozen base cannot be shared out under these arguments."""
    found = []
    if args.world_size < 2:
        found.append("shard_base shares the frozen layers out over processes, but there is one; leave it out")
    if args.gradients == "domain_major":
        found.append("shard_base needs as many forwards on every process: leave train.gradients at auto")
    if alignment.needs_weight_gradients:
        found.append(
            "masks on the weight gradient keep K gradients of every whole layer on every process, which is what "
            "shard_base is there to spare; choose alignment.space factor, tangent or tangent_separable"
        )
    if (args.guard or {}).get("name", "none") != "none":
        found.append("a guard's drift is measured against whole frozen layers; leave shard_base or the guard out")
    steps = isinstance(objective, VCRD) and objective.step_settings is not None
    if steps or (isinstance(objective, Distillation) and objective.rho):
        found.append("samples and steps are written by a whole copy of the student; leave them or shard_base out")
    return found
