"""The prompts of a project, their names, and noise that depends on prompt and seed alone."""

import hashlib
import re
import unicodedata
from pathlib import Path

import torch

from brickreel.config import Sample


def read(settings: Sample) -> list[str]:
    """The prompts to sample, from the settings or from the file that they name, each once and in order.

    Raises ValueError when there is none, FileNotFoundError when the file is missing.
    """
    given = settings.prompts
    if isinstance(given, Path):
        try:
            # Windows' editors begin a file with a mark that is no letter of the first prompt.
            lines = given.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{given} (sample.prompts) is not UTF-8 text: {error}") from None
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {given} with prompts: see sample.prompts") from None
    else:
        lines = list(given)
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ValueError("sample.prompts is empty: give at least one prompt, or a file with one per line")
    return prompts


def prompt_id(prompt: str) -> str:
    """A name for files: the prompt's first words in ASCII and a hash of all of it."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain)[:4]
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
    return "-".join([*(word[:16] for word in words), digest])


def generator(prompt: str, seed: int) -> torch.Generator:
    """Random numbers of one video, keyed by its seed and prompt: the same on any rank, in any batch and order.

    On the CPU, so that a GPU draws the same noise as a laptop.
    """
    key = hashlib.blake2b(f"{seed}\0{prompt}".encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(key, "big") >> 1)
