"""Which films the training of a run was shown, by the logs of its steps: the split of today may be another one."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from brickreel import files
from brickreel.cluster.beside import began

Films = Mapping[str, Collection[str]]
"""Film -> ids of its clips that do not begin with the film's: `cut` names clips for their film, other tools do not."""


def films_of(batches: Iterable[pa.RecordBatch]) -> dict[str, set[str]]:
    """The films of rows with `film_id` and `clip_id`."""
    found: dict[str, set[str]] = {}
    for batch in batches:
        for film, clip in zip(batch["film_id"].to_pylist(), batch["clip_id"].to_pylist(), strict=True):
            clips = found.setdefault(film, set())
            if not clip.startswith(f"{film}-"):
                clips.add(clip)
    return found


def steps_shown(folder: Path, films: Films, since: int = 0) -> dict[str, list[int]]:
    """Film -> optimizer steps with a sample of it, of any rank and attempt from `since` on; none of other films.

    Args:
        folder: of the run, `results/train/{run}`.
    """
    of_clip = {clip: film for film, clips in films.items() for clip in clips}
    found: dict[str, set[int]] = {}
    for log in sorted(folder.glob("steps/*.jsonl")) if films else ():
        for row in files.json_lines(log):
            if (row.get("attempt") or 0) < since:
                continue
            for sample in row.get("sample_ids") or ():
                clip = sample.partition(".")[0]
                film = of_clip.get(clip, clip.partition("-")[0])
                if film in films:
                    found.setdefault(film, set()).add(row["step"])
    return {film: sorted(steps) for film, steps in sorted(found.items())}


def in_training(run: str, films: Films, final: int | None) -> dict[str, list[int]]:
    """Film -> steps up to the `final` one with a sample of it, of the training that a run's weights are from."""
    since = began(run).get("attempt") or 0
    shown = steps_shown(Path("results/train", run), films, since)
    kept = {film: [step for step in steps if final is None or step <= final] for film, steps in shown.items()}
    return {film: steps for film, steps in kept.items() if steps}


def named(films: Mapping[str, Sequence[int]]) -> str:
    """Films with the steps that were shown them, for a sentence."""
    return ", ".join(f"{film} (steps {steps[0]:,} to {steps[-1]:,})" for film, steps in films.items())
