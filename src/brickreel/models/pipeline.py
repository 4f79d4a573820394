"""OpenSoraPipeline: the pipeline with brickreel's loading, strict and without running code from a folder."""

import os
from pathlib import Path
from typing import Any, Self

import torch

from brickreel.models import folder, load
from brickreel.models.text_to_video import TextToVideoPipeline


class OpenSoraPipeline(TextToVideoPipeline):
    """Videos from prompts with an Open-Sora 1.1 model; see TextToVideoPipeline for the call."""

    sampling: str | None = None
    """JSON of the settings that the folder's run was sampled with, which go along where it is saved again."""

    @classmethod
    def from_base(
        cls, base: Any, objective: str = "iddpm", transformer: Any = None, dtype: torch.dtype = torch.float32
    ) -> Self:
        """The pipeline of a base model's three parts.

        Args:
            base: has transformer, autoencoder and text_encoder, each with path, revision and subfolder.
            objective: "iddpm" or "rectified-flow".
            transformer: a loaded STDiT2 that takes the place of the base's.
            dtype: precision of what is loaded here.

        Raises:
            FileNotFoundError, ValueError: as brickreel.models.load does.
        """
        if transformer is None:
            transformer = load.transformer(*_where(base.transformer), dtype=dtype)
        vae = load.autoencoder(*_where(base.autoencoder), dtype=dtype)
        text = load.text_encoder(*_where(base.text_encoder), dtype=dtype)
        return cls(transformer, vae.vae, text.model, text.tokenizer, load.scheduler(objective))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **parts: Any,
    ) -> Self:
        """Load a folder that the export stage or save_pretrained wrote. No code in the folder is run.

        Args:
            source: the folder.
            dtype: precision of what is loaded; fp32 when None.
            torch_dtype: its older name.
            parts: transformer, vae, text_encoder, tokenizer or scheduler: used instead of the folder's.

        Raises:
            FileNotFoundError: when it is no such folder, or a part is missing.
            ValueError: for a damaged part, weights that do not fit exactly, or an unknown part.
        """
        unknown = sorted(parts.keys() - set(folder.PARTS))
        if unknown:
            raise ValueError(f"the pipeline has no {unknown}: choose from {', '.join(folder.PARTS)}")
        root, dtype = Path(source), dtype or torch_dtype or torch.float32
        if not (root / folder.INDEX).is_file():
            raise FileNotFoundError(f"{root} has no {folder.INDEX}: it is not a folder that `brickreel export` wrote")
        if "transformer" not in parts:
            parts["transformer"] = load.transformer(str(root / "transformer"), dtype=dtype)
        if "vae" not in parts:
            parts["vae"] = load.autoencoder(str(root / "vae"), dtype=dtype).vae
        if "text_encoder" not in parts:
            parts["text_encoder"] = load.text_encoder(str(root / "text_encoder"), dtype=dtype).model
        if "tokenizer" not in parts:
            parts["tokenizer"] = load.tokenizer(root / "tokenizer")
        if "scheduler" not in parts:
            parts["scheduler"] = load.scheduler_of(root / "scheduler")
        pipeline = cls(**parts)
        stored = root / folder.SAMPLING
        pipeline.sampling = stored.read_text(encoding="utf-8") if stored.is_file() else None
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Write the folder that from_pretrained reads, and that diffusers loads where brickreel is not installed.

        `kwargs` go to the parts that have weights, such as max_shard_size.
        """
        folder.save(save_directory, self, **kwargs)


def _where(component: Any) -> tuple[str, str | None, str | None]:
    return component.path, component.revision, component.subfolder
