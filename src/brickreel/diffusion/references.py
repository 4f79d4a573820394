"""Reference frames: where clean frames stand in a video that is generated, in Open-Sora 1.1's notation."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Placement(NamedTuple):
    """One run of reference frames. Negative starts count from the end."""

    loop: int = 0
    """Which loop of a long video it belongs to."""
    reference: int = 0
    """Which of the prompt's references the frames come from."""
    reference_start: int = 0
    target_start: int = 0
    length: int = 1
    edit_ratio: float = 0.0
    """0: keep the frames; 1: ignore them; between: how far they are noised and redrawn."""


def parse_placements(text: str, loops: int | None = None) -> list[Placement]:
    """Read "loop,reference,reference_start,target_start,length,edit_ratio;..."; what is left out takes its default.

    Raises ValueError that shows the form, or for a loop that is not among `loops`.
    """
    placements = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        fields = [field.strip() for field in part.split(",")]
        try:
            if len(fields) > 6:
                raise ValueError
            whole = [int(field) for field in fields[:5]]
            placement = Placement(*whole, *[float(field) for field in fields[5:]])
        except ValueError:
            raise ValueError(
                f"mask strategy '{part}' must be loop,reference,reference_start,target_start,length,edit_ratio:"
                " five whole numbers and a fraction, as in 0,0,0,0,1,0.0"
            ) from None
        if placement.length < 1 or not 0 <= placement.edit_ratio <= 1:
            raise ValueError(f"mask strategy '{part}': length must be at least 1 and edit_ratio from 0 to 1")
        if loops is not None and not 0 <= placement.loop < loops:
            raise ValueError(f"mask strategy '{part}' is for loop {placement.loop}: loops here are 0 to {loops - 1}")
        placements.append(placement)
    return placements


def place(z: Tensor, references: list[Tensor], placements: list[Placement], loop: int) -> tuple[Tensor, Tensor | None]:
    """Put reference latents into the start noise of one loop.

    Args:
        z: start noise [c, T, h, w].
        references: latents [c, n, h, w] each.
        placements: of all loops, which `check_placements` has passed.
        loop: which one this is.

    Returns:
        Noise with references in it, and the edit ratio per frame [T] (1 where there is none); None without references
        that are kept in part at least.
    """
    frames = z.shape[1]
    ratios = torch.ones(frames, device=z.device)
    z = z.clone()
    for placement in placements:
        if placement.loop != loop:
            continue
        latents = references[placement.reference]
        source = _within(placement.reference_start, placement.length, latents.shape[1], "the reference")
        target = _within(placement.target_start, placement.length, frames, "the video")
        if placement.edit_ratio < 1:
            z[:, target] = latents[:, source].to(z)
            ratios[target] = placement.edit_ratio
    return z, ratios if bool((ratios < 1).any()) else None


def check_placements(placements: Iterable[Placement], given: Sequence[Sequence[int]], video: Sequence[int]) -> None:
    """Look at the placements of all loops before the first one begins.

    Args:
        given: frames, and rows and columns in latents, of each reference.
        video: the same of one loop, which is a reference for those after it.

    Raises ValueError when a placement names a reference or frames that there are not, or one of another size.
    """
    for placement in placements:
        known = [*given, *[video] * placement.loop]
        if not -len(known) <= placement.reference < len(known):
            raise ValueError(f"the mask strategy names reference {placement.reference} of {len(given)}")
        frames, *size = known[placement.reference]
        _within(placement.reference_start, placement.length, frames, "the reference")
        _within(placement.target_start, placement.length, video[0], "the video")
        if size != list(video[1:]):
            raise ValueError(f"a reference is {size} latents in size, the video {list(video[1:])}")


def _within(start: int, length: int, frames: int, what: str) -> slice:
    first = start + frames if start < 0 else start
    if first < 0 or first + length > frames:
        raise ValueError(f"the mask strategy takes frames {start} to {start + length} of {what}, which has {frames}")
    return slice(first, first + length)


def prompts_by_loop(prompt: str, loops: int) -> list[str]:
    """The prompt of each loop: "|0|first text|2|text from loop 2 on", or one text for all.

    Raises ValueError when loop 0 has no text, or a loop that there is not has one.
    """
    pieces = re.split(r"\|(\d+)\|", prompt)
    if len(pieces) == 1:
        return [prompt] * loops
    starts = {int(number): text.strip() for number, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    if 0 not in starts or pieces[0].strip():
        raise ValueError("a prompt with |loop|text parts must start with |0|")
    if max(starts) >= loops:
        raise ValueError(f"the prompt has a text for loop {max(starts)}: loops here are 0 to {loops - 1}")
    chosen, current = [], starts[0]
    for loop in range(loops):
        current = starts.get(loop, current)
        chosen.append(current)
    return chosen
