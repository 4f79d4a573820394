"""Names that NVML gives GPUs, against the tables that know some of them."""

import re


def names(words: str, gpu: str | None) -> bool:
    """Whether these are whole words of the GPU's name: an L40 is no L4, and an RTX A4000 no A40."""
    return bool(gpu) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", str(gpu)) is not None
