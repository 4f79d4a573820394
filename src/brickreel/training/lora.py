"""Low-rank additions (Hu et al., 2021) through peft, and a checkpoint's weights as a whole transformer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from brickreel.config import Base, Lora, Run
from brickreel.models import load
from brickreel.training import checkpoint

# peft's names of the two factors, behind the layer's own.
_LOW, _HIGH = ".lora_A.", ".lora_B."


def base_transformer(base: Base) -> Any:
    """The model that fine-tuning starts from."""
    part = base.transformer
    return load.transformer(part.path, revision=part.revision, subfolder=part.subfolder)


def inject(model: Any, settings: Lora, seed: int) -> Any:
    """Freeze the model and add trainable low-rank matrices to its linear layers, the same ones on every rank.

    Raises ValueError when no layer has one of the names.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    # The patch embedding is a convolution of the name `proj`: not meant.
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    chosen = [name for name in linear if name.rpartition(".")[2] in settings.targets]
    if not chosen:
        known = sorted({name.rpartition(".")[2] for name in linear if not name.rpartition(".")[2].isdecimal()})
        raise ValueError(f"lora.targets {list(settings.targets)} name no linear layer: choose from {known}")
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = inject_adapter_in_model(config, model)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            # Autocast and the backends see to types; peft would copy a bf16 input to fp32, and autocast copy it back.
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010  (peft declares it nowhere)
    return model


def whole(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], settings: Lora | None) -> dict[str, Tensor]:
    """The transformer's state: the base model's, with what was trained put in its place or, for LoRA, added to it.

    Raises ValueError when the base model has no such weight.
    """
    state = dict(base)
    for name, value in trained.items():
        target = name.partition(_LOW)[0].partition(_HIGH)[0] + ".weight" if settings else name
        if target not in state:
            raise ValueError(f"the checkpoint does not fit the base model, which has no {target}")
        if not settings:
            state[name] = value
        elif _LOW in name:
            product = trained[name.replace(_LOW, _HIGH)].float() @ value.float()
            addition = settings.alpha / settings.rank * product
            state[target] = (state[target].float() + addition).to(state[target].dtype)
    return state


def load_transformer(path: Path, which: str, base: Base, run: Run, check: bool = True) -> Any:
    """The transformer with a checkpoint's `raw` or `ema` weights, on the CPU; additions of a LoRA run are merged."""
    model = base_transformer(base)
    model.load_state_dict(whole(model.state_dict(), checkpoint.load_weights(path, which, check), run.lora))
    return model
