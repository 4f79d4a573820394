"""The cards of an exported model: what it is, what it learned from and under which licences, how it scored."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from brickreel.config import Base, Component, Config
from brickreel.evaluation import generate, seen

Row = Mapping[str, Any]

PROVENANCE = ("title", "channel", "url", "licence", "rights_holder")


def films(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What training and held-out clips come from: one row per film, those with most clips first.

    Args:
        rows: of the table `cut_index`, those that the run was shown, with the `count` of those that are alike.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        film = found.setdefault(
            row["film_id"],
            {"film_id": row["film_id"], "split": row["split"], "clips": 0, "stills": 0}
            | {name: row[name] for name in PROVENANCE},
        )
        film["clips" if row["kind"] == "clip" else "stills"] += row["count"]
    return sorted(found.values(), key=lambda film: (-film["clips"], film["film_id"]))


def licences(of_films: Sequence[Row]) -> list[dict[str, Any]]:
    """Films and clips per licence, the most used first. A film without one is named as such."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for film in of_films:
        table[film["licence"] or "none stated"].update(films=1, clips=film["clips"], stills=film["stills"])
    return [{"licence": name, **counts} for name, counts in sorted(table.items(), key=lambda item: -item[1]["clips"])]


def captioners(captions: Iterable[Row]) -> list[str]:
    """Who described the clips, such as "gpt-4o: 240"; the most active first.

    Args:
        captions: rows of that table that have a text, with the `count` of those that are alike.
    """
    counts: Counter[str] = Counter()
    for row in captions:
        counts[row["model"] or row["source"] or "unknown"] += row["count"]
    return [f"{name}: {count}" for name, count in counts.most_common()]


def remarks(
    datasets: Sequence[str], present: str, gone: Mapping[str, Sequence[int]], held: Mapping[str, Sequence[int]]
) -> list[str]:
    """Where the dataset of today, which the cards list, is not that of the training; nothing where it is.

    Args:
        datasets: fingerprints of what training was shown; `present`: of what would be shown today.
        gone: films that training was shown and that have been withdrawn since, with the steps; `held`: that are held
            out now.
    """
    found = []
    if list(datasets) != [present]:
        how = "is not, or was not all along," if datasets else "is not known to be"
        found.append(f"The dataset as it stands, of which the tables tell, {how} the one that training was shown.")
    if gone:
        found.append(f"Training was shown films that have been withdrawn since: {seen.named(gone)}.")
    if held:
        found.append(f"Training was shown films that are held out now, and test nothing new: {seen.named(held)}.")
    return found


def scores_of(scores: Mapping[str, Any] | None, weights: str, final: int) -> list[dict[str, Any]]:
    """The metrics that the card shows: of the base model and of the exported weights at the last step, prompted, at
    the trained length. Steps beyond the `final` one are of weights that the folder does not hold."""
    rows = (scores or {}).get("metrics", [])
    rows = [row for row in rows if row.get("conditional", True) and row.get("length", 1) == 1]
    rows = [row for row in rows if (row.get("step") or 0) <= final]
    last = max((row.get("step") or 0 for row in rows if row.get("weights") == weights), default=0)
    shown = [
        row
        for row in rows
        if row.get("weights") == "base" or (row.get("weights") == weights and row.get("step") == last)
    ]
    return [
        {
            "name": row["name"],
            "model": "before fine-tuning" if row.get("weights") == "base" else f"after {last:,} steps",
            "value": _number(row.get("value")),
            "interval": " to ".join(_number(row[end]) for end in ("low", "high")) if row.get("low") is not None else "",
            "n": row.get("n") or "",
            "remark": "; ".join(filter(None, (row.get("unit"), row.get("reason")))),
        }
        for row in shown
    ]


def only_before(scores: Sequence[Row]) -> bool:
    """Whether rows of `scores_of` tell of the base model alone: the exported weights were not sampled."""
    return bool(scores) and all(row["model"] == "before fine-tuning" for row in scores)


def gauge_of(rows: Iterable[Row], weights: str, final: int) -> dict[str, Any] | None:
    """The last reading of the held-out loss relative to step 0, over all timesteps; None where there is none.

    That of step 0, which says nothing, is it only where there is no later one. Of a step that was read twice, the later
    reading counts; one beyond the `final` step is of other weights, one before the last start at step 0 of an earlier
    training.
    """
    own = [row for row in rows if row["weights"] == weights and row["step"] <= final]
    began = max((row["attempt"] or 0 for row in own if row["step"] == 0), default=0)
    own = [row for row in own if (row["attempt"] or 0) >= began]
    newest = {row["step"]: row["attempt"] for row in own}
    own = [row for row in own if row["attempt"] == newest[row["step"]]]
    trained = any(row["step"] for row in own)
    own = [row for row in own if row["relative"] is not None and (row["step"] or not trained)]
    last = [row for row in own if row["step"] == max(row["step"] for row in own)]
    if not last:
        return None
    mean = sum(row["relative"] for row in last) / len(last)
    return {"step": last[0]["step"], "relative": mean, "clips": max(row["clips"] or 0 for row in last)}


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def model_card(config: Config, run: str, facts: Mapping[str, Any]) -> str:
    """README.md of the exported folder.

    Args:
        facts: weights ("ema" or "raw"), step, samples, scores, gauge, films, licences, captioners, fingerprint and
            heldout, energy, present, remarks: what `stages.export.gather` returns.
    """
    settings = config.run(run).model_dump(mode="json")
    stored = generate.sampling(config.sample, config.run(run).objective)
    return _render(
        "model_card.md.j2",
        name=f"{config.project.name} {run}",
        front=_front(config, run),
        run=run,
        parts=_parts(config.base),
        call={name: value for name, value in stored.items() if name != "hold" and value is not None},
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        settings_of=config.run(run),
        only_before=only_before(facts["scores"]),
        **facts,
    )


def dataset_card(config: Config, run: str, facts: Mapping[str, Any]) -> str:
    """DATASET.md of the exported folder: every film with its licence and rights holder; `facts` as for the model."""
    return _render("dataset_card.md.j2", name=config.project.name, run=run, **facts)


def dataset_front(run: str, splits: Iterable[str]) -> str:
    """The metadata that the hub reads on top of a dataset's card: splits are folders."""
    front = {
        "pretty_name": f"Clips of {run}",
        "task_categories": ["text-to-video"],
        "tags": ["brickreel", "stop-motion"],
        "license": "other",
        "license_name": "see-table-of-films",
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}/**"} for split in splits],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n"


def _front(config: Config, run: str) -> str:
    """The metadata that the Hugging Face hub reads on top of a card."""
    base = config.base.transformer.path
    front: dict[str, Any] = {
        "pipeline_tag": "text-to-video",
        "library_name": "diffusers",
        "tags": ["brickreel", "stop-motion", "stdit2", config.run(run).objective],
        # What the base model's and the films' owners allow is for the publisher to decide; the tables below say it.
        "license": "other",
        "license_name": "see-training-data",
    }
    if not _is_folder(base) and re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        front["base_model"] = base
    return yaml.safe_dump(front, sort_keys=False)


def _parts(base: Base) -> list[dict[str, str]]:
    return [
        {
            "part": name.replace("_", " "),
            "origin": _origin(part.path),
            "revision": part.revision or _commit(name, part),
        }
        for name, part in (
            ("transformer", base.transformer),
            ("autoencoder", base.autoencoder),
            ("text_encoder", base.text_encoder),
        )
    ]


def _commit(name: str, part: Component) -> str:
    """The commit of what is taken from the hub's cache; nothing for a folder, or where it is not on this machine."""
    from brickreel.models import load

    try:
        found = "" if _is_folder(part.path) else load.locate(name, part.path, subfolder=part.subfolder)
    except FileNotFoundError:
        return ""
    return next((place.name for place in Path(found, "x").parents if place.parent.name == "snapshots"), "")


def _origin(path: str) -> str:
    """A hub name as it is; of a folder only its name, since where it lies is nobody's business."""
    return f"a local folder, {Path(path).name}" if _is_folder(path) else path


def _is_folder(path: str) -> bool:
    """Whether it is no name of the hub, as the loading decides: weights/stdit2 is a folder where there is one."""
    return Path(path).is_absolute() or path.startswith((".", "~")) or Path(path).is_dir()


def _link(url: Any) -> Any:
    """An address for a cell of a Markdown table: between < and > it is a link as it stands, underscores and all.

    One with letters that would end the link or the cell is text like any other.
    """
    text = str(url or "")
    return Markup(f"<{text}>") if re.fullmatch(r"https?://[^\s<>|\\\"`]+", text) else _cell(text)  # noqa: S704


def _cell(value: Any) -> str:
    """Text for a cell of a Markdown table: one line, no bars, no markup from titles that other people chose."""
    text = " ".join(str("" if value is None else value).split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"], environment.filters["link"] = _cell, _link
    source = resources.files("brickreel") / "evaluation" / "templates" / template
    return environment.from_string(source.read_text(encoding="utf-8")).render(**values)
