"""Weights, gradients, optimizer and moving average sharded over all ranks by torch's `fully_shard`."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from brickreel.training.backends.base import Backend


class FullySharded(Backend):
    """FSDP2: fp32 shards, gathered block by block in the precision of the products."""

    sharded = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard each block, then what is left. Raises ValueError for a single rank without a process group."""
        if not torch.distributed.is_initialized():
            raise ValueError("backend fsdp2 needs several ranks: use ddp for one process")
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        policy = MixedPrecisionPolicy(param_dtype=self.autocast, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in getattr(model, "blocks", []):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        whole = fully_shard(model, mesh=mesh, mp_policy=policy)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                # The gradient is the sum over ranks; gloo has no averaging reduction.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        # The model's output is a view; nobody writes into it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        return whole  # type: ignore[return-value]

    def round(self, last: bool) -> AbstractContextManager:
        """Gradients are reduced in the last micro-batch only."""
        whole = cast(FSDPModule, self.model)
        whole.set_requires_gradient_sync(last)
        whole.set_is_last_backward(last)
        return nullcontext()

    def rest(self) -> None:
        """The outermost weights wait for a backward pass: shard them again, so that all tensors are parts."""
        cast(FSDPModule, self.model).reshard()
