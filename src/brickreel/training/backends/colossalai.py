"""ColossalAI's Booster with LowLevelZero, as the origin trained: stage 1 shards the optimizer, 2 the gradients too.

Its limits. In bf16 the whole model is cast, as the origin's was, and gradients are added up and exchanged in bf16:
losses agree with the other backends to about 1 %, and those of another number of ranks to as much. Stage 2 exchanges
gradients after every micro-batch. Resuming at equal world size is exact in both precisions, since what a checkpoint
holds are the fp32 masters, which ColossalAI's own checkpoints leave out.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from brickreel.training.backends.base import BETAS, EPSILON, Backend


class ColossalZero(Backend):
    """Each rank keeps an equal part of every flattened weight in fp32, with its moments and average."""

    sharded = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Boost model and optimizer. Raises ValueError for a single rank, which ColossalAI does not know."""
        if not dist.is_initialized():
            raise ValueError("backend colossalai needs several ranks: use ddp for one process")
        if self.device.type == "cpu":
            _allow_cpu()
        from colossalai.booster import Booster
        from colossalai.booster.plugin import LowLevelZeroPlugin

        trained = [value for value in model.parameters() if value.requires_grad]
        exact = [value.detach().to("cpu", copy=True) for value in trained]
        # The model computes in the precision of its weights, so that there is nothing to cast per operation.
        self.autocast = None
        optimizer = torch.optim.AdamW(
            trained, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=self.run.weight_decay, fused=True
        )
        plugin = LowLevelZeroPlugin(
            stage=self.run.zero_stage,
            precision=self.run.precision,
            overlap_communication=self.device.type == "cuda",
            cast_inputs=False,
        )
        wrapped, self.zero, *_ = Booster(plugin=plugin).boost(model, optimizer)
        self.mesh = init_device_mesh(self.device.type, (self.world_size,))
        for value, original in zip(trained, exact, strict=True):
            # ColossalAI takes its masters from weights that are rounded already.
            part = original.view(-1).tensor_split(self._cuts(value))[dist.get_rank()]
            self._master(value)[: part.numel()].copy_(part)
        return wrapped

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over the masters, its state in place."""
        for _, value in self.trained():
            moments = {name: torch.zeros_like(value) for name in ("exp_avg", "exp_avg_sq")}
            self.zero.optim.state[value] = {"step": torch.zeros((), device=self.device), **moments}
        return self.zero.optim

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """Name and fp32 master of each trained weight: this rank's part, flat, padded to equal length."""
        for name, value in self._working():
            yield name, self._master(value)

    def round(self, last: bool) -> AbstractContextManager:
        """Stage 1 exchanges in the last micro-batch; stage 2 keeps only its part and must exchange every time."""
        return nullcontext() if last or self.run.zero_stage == 2 else self.zero.no_sync()

    def backward(self, loss: Tensor) -> None:
        """ColossalAI averages over ranks; the gradient is to be the sum."""
        self.zero.backward(loss * self.world_size)

    def squares(self) -> Tensor:
        """Sums of squares of gradient and weights over this rank's part: float64 [2]."""
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        gradients = sum((gradient.double().square().sum() for gradient in self._gradients()), zero)
        weights = sum((value.double().square().sum() for _, value in self.trained()), zero)
        return torch.stack([gradients, weights])

    def update(self, lr: float, gradient_scale: float) -> None:
        """One optimizer step with scaled gradients, and one of the moving average."""
        torch._foreach_mul_(self._gradients(), gradient_scale)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.zero.step()
        self.zero.zero_grad()
        self.average()

    def skip(self) -> None:
        """Forget the gradient of a step that is not finite."""
        self.zero.zero_grad()

    def swap_ema(self) -> None:
        """Exchange masters and moving average, and give the model the new ones."""
        super().swap_ema()
        self._publish()

    def state(self) -> dict[str, Tensor]:
        """As the other backends', but every tensor is flat: `shapes` says what it is a part of."""
        flat = super().state()
        return {name: self._sharded(name.partition(".")[2], value) for name, value in flat.items()}

    def shapes(self) -> dict[str, list[int]]:
        """Shape of each trained weight."""
        return {name: list(value.shape) for name, value in self._working()}

    def loaded(self, updates: int) -> None:
        """The model takes the weights that were read into the masters."""
        super().loaded(updates)
        self._publish()

    def _working(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, value in self.model.named_parameters():
            if value.requires_grad:
                yield name, value

    def _master(self, value: nn.Parameter) -> Tensor:
        return self.zero.get_working_to_master_map()[id(value)]

    def _gradients(self) -> list[Tensor]:
        return [
            grad for store in self.zero.pg_to_grad_store.values() for grad in store.get_working_grads_by_group_id(0)
        ]

    def _cuts(self, value: Tensor) -> list[int]:
        """Where the parts of a flattened weight begin, the first apart: all are equal but the last ones."""
        part = -(-value.numel() // self.world_size)
        return [min(rank * part, value.numel()) for rank in range(1, self.world_size)]

    def _sharded(self, name: str, part: Tensor) -> Tensor:
        """A rank's padded part as a part of the whole flat tensor, which any number of ranks can load."""
        count = self.model.get_parameter(name).numel()
        begin = dist.get_rank() * part.numel()
        valid = part[: max(0, min(part.numel(), count - begin))]
        return DTensor.from_local(valid, self.mesh, [Shard(0)], run_check=False, shape=torch.Size([count]), stride=(1,))

    @torch.no_grad()
    def _publish(self) -> None:
        """Gather the masters into the model's weights, rounded to its precision."""
        for _, value in self._working():
            whole = self.zero._working_param_to_padded_working_param[value]
            dist.all_gather_into_tensor(whole, self._master(value).to(whole.dtype))


def _allow_cpu() -> None:
    """Let LowLevelZero work without a GPU: it asks for streams, where a CPU has none, and for a device by name."""
    from colossalai.accelerator import CpuAccelerator, get_accelerator, set_accelerator
    from colossalai.zero.low_level import LowLevelZeroOptimizer

    class Cpu(CpuAccelerator):
        """A device whose work is done when the call returns."""

        Stream = current_stream = synchronize = empty_cache = manual_seed = lambda self, *_, **__: None

        def stream(self, stream_: Any) -> AbstractContextManager:
            """There is one order of work."""
            return nullcontext()

        def device_count(self) -> int:
            """One."""
            return 1

    if not isinstance(get_accelerator(), CpuAccelerator) or type(get_accelerator()).__name__ != "Cpu":
        set_accelerator(Cpu())
    LowLevelZeroOptimizer._sanity_checks = lambda self: None
