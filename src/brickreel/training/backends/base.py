"""What every backend does, and what those with torch's own optimizer share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from brickreel.config import Run

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Backend(ABC):
    """One model, its gradients, optimizer and moving average, on this rank.

    A step is: `round(last)` with forward and `backward` per micro-batch, `squares()`, then `update()` or `skip()`.
    """

    sharded = False
    """Whether each rank holds only its part of gradients and weights."""

    def __init__(self, model: nn.Module, run: Run, world_size: int, device: torch.device) -> None:
        self.run, self.world_size, self.device = run, world_size, device
        self.autocast = torch.bfloat16 if run.precision == "bf16" else None
        self.model = model.to(device)
        self.wrapped = self.wrap(self.model)
        self.names = [name for name, value in self.model.named_parameters() if value.requires_grad]
        self.ema = {name: value.detach().clone() for name, value in self.trained()}
        self.optimizer = self.make_optimizer()
        self.comm_s = 0.0
        """Exposed communication of the last step on this rank, in seconds, where `tells_comm`."""

    @property
    def tells_comm(self) -> bool:
        """Whether it is known how long a rank does nothing but communicate: one that is alone never does."""
        return self.world_size == 1

    @property
    def tells_local(self) -> bool:
        """Whether a rank's work before the first collective is its own: sharded ones gather in every block."""
        return self.world_size == 1 or not self.sharded

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard or replicate the model; what this returns is called."""

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of each trained weight as this rank holds it."""
        for name, value in self.model.named_parameters():
            if value.requires_grad:
                yield name, value

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW with its state in place from the start, so that a checkpoint can be loaded into it."""
        optimizer = torch.optim.AdamW(
            [value for _, value in self.trained()],
            lr=0.0,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=self.run.weight_decay,
            fused=True,
        )
        for _, value in self.trained():
            moments = {name: torch.zeros_like(value.detach()) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[value] = {"step": torch.zeros((), dtype=torch.float32, device=self.device), **moments}
        return optimizer

    def round(self, last: bool) -> AbstractContextManager:
        """Around one micro-batch; gradients are exchanged in the last one of a step."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient. Over all ranks the gradient is the sum, not the mean."""
        loss.backward()

    def squares(self) -> Tensor:
        """Sums of squares of gradient and weights, this rank's part when sharded: float64 [2]."""
        gradients = [local(value.grad) for _, value in self.trained() if value.grad is not None]
        weights = [local(value.detach()) for _, value in self.trained()]
        return torch.stack([_sum_of_squares(gradients, self.device), _sum_of_squares(weights, self.device)])

    def update(self, lr: float, gradient_scale: float) -> None:
        """One optimizer step with scaled gradients, and one of the moving average."""
        if gradient_scale != 1.0:
            gradients = [local(value.grad) for _, value in self.trained() if value.grad is not None]
            torch._foreach_mul_(gradients, gradient_scale)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        """ema = decay * ema + (1 - decay) * weights, on this rank's part."""
        averages = [local(self.ema[name]) for name, _ in self.trained()]
        torch._foreach_lerp_(averages, [local(value) for _, value in self.trained()], 1 - self.run.ema_decay)

    def rest(self) -> None:  # noqa: B027  (most backends gather nothing)
        """Called after a forward pass that no backward pass follows: give back what it gathered."""

    def skip(self) -> None:
        """Forget the gradient of a step that is not finite."""
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def swap_ema(self) -> None:
        """Exchange weights and moving average; a second call takes it back."""
        for name, value in self.trained():
            weights, average = local(value), local(self.ema[name])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint by name, sharded as this backend shards: weights, moments, moving average."""
        state = {}
        for name, value in self.trained():
            moments = self.optimizer.state[value]
            state[f"model.{name}"] = value.detach()
            state[f"ema.{name}"] = self.ema[name]
            state[f"exp_avg.{name}"] = moments["exp_avg"]
            state[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
        return state

    def shapes(self) -> dict[str, list[int]]:
        """Shape of each trained weight whose tensors in `state()` are flat; empty when they have their own shape."""
        return {}

    def updates(self) -> int:
        """Optimizer steps taken: skipped ones do not count."""
        return int(next(iter(self.optimizer.state.values()))["step"])

    def loaded(self, updates: int) -> None:
        """Called after a checkpoint was read into the tensors of `state()`."""
        for moments in self.optimizer.state.values():
            moments["step"].fill_(updates)


def local(value: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def _sum_of_squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(filled)).double().square().sum()
