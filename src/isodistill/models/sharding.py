"""A frozen base that no process holds whole (FSDP, arXiv 2304.11277, PyTorch's second version); adapters stay whole.

Each of P processes keeps 1/P of every decoder layer and gathers a layer for the time of its forward and of its
backward. Nothing else changes: factors A and B, their gradients by domain, masks and optimizer are on every process as
without sharding, so the step is the same. Embeddings, final norm and head stay whole.
"""

from __future__ import annotations

from typing import cast

from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from isodistill.errors import UserError

__all__ = ["shard_base"]


def shard_base(model: PeftModel, device_type: str, processes: int) -> None:
    """Share the frozen weights of the decoder layers out over the processes, in place.

    Args:
        model: with its adapter, whose parameters are the trained ones.
        device_type: where the shards live, ``cpu`` or ``cuda``.
        processes: of the group, which has been initialised.

    Raises:
        UserError: the model does not say which of its modules are its layers.
    """
    causal = cast(PreTrainedModel, model.get_base_model())
    names = set(causal._no_split_modules or ())
    layers = [module for module in causal.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(
            f"{type(causal).__name__} does not say what its layers are (`_no_split_modules`), so its frozen weights "
            "cannot be shared out; leave train.shard_base out."
        )
    mesh = init_device_mesh(device_type, (processes,))
    trained = {p for p in model.parameters() if p.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    # The root that FSDP2 asks for: the decoder, which itself shares out nothing.
    decoder = cast(nn.Module, getattr(causal, causal.base_model_prefix))
    inside = {p for layer in layers for p in layer.parameters()}
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - inside | trained)
