"""Improved DDPM (Nichol and Dhariwal 2021) as Open-Sora 1.1 trains it: learned-range variance, clean frames.

Tables follow the original to the bit: betas are spaced in float64, recovered from the cumulative products, stored in
float32, and everything else is computed from those float32 values.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

TIMESTEPS = 1000


def linear_betas(start: float = 1e-4, end: float = 0.02, steps: int = TIMESTEPS) -> Tensor:
    """Noise variances per step, in float64 (Ho et al. 2020)."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def spaced_timesteps(count: int, steps: int = TIMESTEPS) -> list[int]:
    """`count` of `steps` timesteps, evenly spaced with both ends, by the original's running sum.

    Raises ValueError when there are fewer than one or more than `steps`.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"the sampler takes 1 to {steps} steps, not {count}")
    stride = (steps - 1) / (count - 1) if count > 1 else 1.0
    position, chosen = 0.0, set()
    for _ in range(count):
        chosen.add(round(position))
        position += stride
    return sorted(chosen)


class IDDPM:
    """The forward process and the training loss; `IDDPM(n)` keeps only n timesteps, for sampling.

    Attributes are float32 tables by step index: betas, alphas_cumprod, posterior_log_variance_clipped, ...;
    `timestep_map` [n] gives the timestep that the model is told.
    """

    def __init__(self, steps: int = TIMESTEPS) -> None:
        self.timestep_map = torch.tensor(spaced_timesteps(steps))
        kept = torch.cumprod(1.0 - linear_betas(), 0)[self.timestep_map]
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        self.betas = (1 - kept / before).float()
        alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(alphas, 0)
        one = torch.ones(1)
        self.alphas_cumprod_prev = torch.cat([one, self.alphas_cumprod[:-1]])
        self.sqrt_alphas_cumprod = self.alphas_cumprod.sqrt()
        self.sqrt_one_minus_alphas_cumprod = (1.0 - self.alphas_cumprod).sqrt()
        self.sqrt_recip_alphas_cumprod = (1.0 / self.alphas_cumprod).sqrt()
        self.sqrt_recipm1_alphas_cumprod = (1.0 / self.alphas_cumprod - 1).sqrt()
        rest = 1.0 - self.alphas_cumprod
        self.posterior_variance = self.betas * (1.0 - self.alphas_cumprod_prev) / rest
        # The first posterior variance is zero; its logarithm is replaced by the second's.
        clipped = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]])
        self.posterior_log_variance_clipped = clipped.log() if steps > 1 else self.betas.log()
        self.log_betas = self.betas.log()
        self.posterior_mean_coef1 = self.betas * self.alphas_cumprod_prev.sqrt() / rest
        self.posterior_mean_coef2 = (1.0 - self.alphas_cumprod_prev) * alphas.sqrt() / rest

    def __len__(self) -> int:
        return len(self.betas)

    def at(self, table: str, index_B: Tensor, like: Tensor) -> Tensor:
        """Values of a table at step indices [B], on the device of `like` and shaped to broadcast over it."""
        values = getattr(self, table)
        if values.device != like.device:
            values = values.to(like.device)
            setattr(self, table, values)
        return values[index_B].view(-1, *[1] * (like.dim() - 1))

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise, in fp32. t: step indices [B]."""
        return self.at("sqrt_alphas_cumprod", t, x0) * x0 + self.at("sqrt_one_minus_alphas_cumprod", t, x0) * noise

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor, x_mask: Tensor | None) -> Tensor:
        """x_t; frames where `x_mask` [B, T] is False carry the same noise at t = 0, as in the original."""
        x_t = self.add_noise(x0, t, noise)
        if x_mask is None:
            return x_t
        return torch.where(x_mask[:, None, :, None, None], x_t, self.add_noise(x0, torch.zeros_like(t), noise))

    def training_losses(
        self,
        model: Callable[..., Tensor],
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
        x_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Hybrid loss: squared error of the noise, plus the variational bound with the mean held fixed.

        Args:
            model: called as model(x_t, t, x_mask=..., **model_kwargs), returns [B, 2c, T, h, w].
            x0: clean latents [B, c, T, h, w].
            t: timesteps [B], int64. noise: like x0.
            x_mask: bool [B, T], False for clean frames, which do not count; None: all count.

        Returns:
            "loss", "mse", "vb" (in bits per dimension), each [B], averaged over noised frames.
        """
        x_t = self.noised(x0, t, noise, x_mask)
        output = model(x_t, self.told(t), x_mask=x_mask, **(model_kwargs or {}))
        predicted, variance = halves(output, x_t)
        mse = masked_mean((noise - predicted).square(), x_mask)
        vb = masked_mean(self._bound(x0, x_t, t, predicted.detach(), variance), x_mask)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def p2_weights(self, t: Tensor, k: float, gamma: float) -> Tensor:
        """Weights [B] of losses at step indices t [B]: (k / (k + SNR)) ** gamma (P2, Choi et al. 2022), at most 1.

        Without weights nearly all of the loss is of the last details: at t = 700 the noise's error is a hundredth of
        the error in what the picture shows.
        """
        kept = self.at("alphas_cumprod", t, t)
        return (k / (k + kept / (1 - kept))) ** gamma

    def told(self, t: Tensor) -> Tensor:
        """The timestep that the model is told at step indices t [B]."""
        if self.timestep_map.device != t.device:
            self.timestep_map = self.timestep_map.to(t.device)
        return self.timestep_map[t]

    def _bound(self, x0: Tensor, x_t: Tensor, t: Tensor, predicted: Tensor, variance: Tensor) -> Tensor:
        """Terms of the variational bound in bits (Nichol and Dhariwal 2021, eq. 4-6), elementwise."""
        true_mean = self.posterior_mean(x0, x_t, t)
        true_log_variance = self.at("posterior_log_variance_clipped", t, x_t)
        mean = self.posterior_mean(self.predicted_x0(x_t, t, predicted), x_t, t)
        log_variance = self.log_variance(variance, t)
        kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
        first = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
        return torch.where((t == 0).view(-1, *[1] * (x_t.dim() - 1)), first, kl) / math.log(2.0)

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)."""
        return self.at("posterior_mean_coef1", t, x_t) * x0 + self.at("posterior_mean_coef2", t, x_t) * x_t

    def predicted_x0(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The clean latents that x_t and this noise imply."""
        return (
            self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - self.at("sqrt_recipm1_alphas_cumprod", t, x_t) * noise
        )

    def log_variance(self, value: Tensor, t: Tensor) -> Tensor:
        """The model's variance output, -1 to 1, between the logarithms of the posterior's variance and of beta."""
        low, high = self.at("posterior_log_variance_clipped", t, value), self.at("log_betas", t, value)
        share = (value + 1) / 2
        return share * high + (1 - share) * low


def halves(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The noise and the variance that a model predicts for x [B, c, ...]. Raises ValueError for noise alone."""
    if output.shape[1] != 2 * x.shape[1]:
        raise ValueError("IDDPM needs a model with pred_sigma")
    return output[:, : x.shape[1]], output[:, x.shape[1] :]


def masked_mean(value: Tensor, x_mask: Tensor | None) -> Tensor:
    """Mean per sample of [B, c, T, h, w] over the frames where x_mask [B, T] is True (all when None): [B]."""
    per_frame = value.float().mean(dim=(1, 3, 4))
    if x_mask is None:
        return per_frame.mean(1)
    counted = x_mask.to(per_frame.dtype)
    return (per_frame * counted).sum(1) / counted.sum(1).clamp(min=1)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of two diagonal Gaussians in nats, elementwise."""
    return 0.5 * (
        -1.0
        + log_variance2
        - log_variance1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2).square() * torch.exp(-log_variance2)
    )


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-likelihood in nats of x under a Gaussian with bins of 2/255 in [-1, 1], elementwise.

    The normal CDF is the original's tanh approximation; latents are not pixels, and yet it uses their bins.
    """
    centred, inverse = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (centred + 1.0 / 255.0))
    lower = _normal_cdf(inverse * (centred - 1.0 / 255.0))
    inside = (upper - lower).clamp(min=1e-12).log()
    below, above = upper.clamp(min=1e-12).log(), (1.0 - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
