"""Every rank holds the whole model; gradients are summed while the backward pass runs."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from brickreel.training.backends.base import Backend


class DataParallel(Backend):
    """torch's DistributedDataParallel; the plain model when there is one rank."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Replicate, rank 0's weights to all."""
        self.last_bucket = 0.0
        if self.world_size == 1:
            return model
        # The last bucket is exchanged with nothing beside it: an eighth of the gradients at most.
        mib = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad) / 2**20
        wrapped = DistributedDataParallel(
            model, forward_sync_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=min(25.0, mib / 8)
        )
        wrapped.register_comm_hook(self, _sum_gradients)
        return wrapped

    @property
    def tells_comm(self) -> bool:
        """On a GPU the host cannot see when the last bucket's exchange ends."""
        return self.world_size == 1 or self.device.type == "cpu"

    def round(self, last: bool) -> AbstractContextManager:
        """No exchange before the last micro-batch."""
        return nullcontext() if last or self.world_size == 1 else self.wrapped.no_sync()  # type: ignore[operator]

    def backward(self, loss: Tensor) -> None:
        """On a CPU, what the backward pass takes after its last gradient is exposed communication."""
        self.last_bucket = 0.0
        super().backward(loss)
        if self.last_bucket and self.device.type == "cpu":
            self.comm_s += time.perf_counter() - self.last_bucket


def _sum_gradients(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    state.last_bucket = time.perf_counter()
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
