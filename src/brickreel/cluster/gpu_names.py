"""Names that NVML and Slurm give GPUs, against the tables that know some of them."""

import re


def names(words: str, gpu: str | None) -> bool:
    """Whether these are whole words of the GPU's name, NVML's or Slurm's: `NVIDIA H100 80GB`, `nvidia_h100_80gb`.

    An L40 is no L4, and an RTX A4000 no A40.
    """
    part, said = (re.sub("[_-]", " ", text) for text in (words, gpu or ""))
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", said, re.I) is not None
