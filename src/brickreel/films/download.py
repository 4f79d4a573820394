"""Films from the network, through yt-dlp: single ones, channels and playlists. Downloads resume."""

import errno
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from brickreel import files

logger = logging.getLogger("brickreel")

TIMEOUT_S = 20.0
ATTEMPTS = 3
# How yt-dlp, which knows no error numbers, tells of a disk or quota that is full.
FULL = [f"[Errno {number}]" for number in (errno.ENOSPC, errno.EDQUOT)]
# What it says where a site cannot be reached.
UNREACHABLE = (
    "resolve", "resolution", "refused", "unreachable", "timed out", "No route", "reset by peer", "Name or service",
    "Failed to establish",
)  # fmt: skip
# Which of a site's versions is taken: up to so many rows, not HDR where there is a choice, else what there is.
FORMAT = "bv*[height<={0}][dynamic_range=?SDR]/bv*[height<={0}]/b[height<={0}]/bv*/b"
# What yt-dlp calls a result with entries.
LISTS = ("playlist", "multi_video")


class Item(NamedTuple):
    """One film behind a URL, with what the site says of it."""

    url: str
    """As a person would type it; what yt-dlp tells itself behind the # is in `address`."""
    address: str
    title: str | None
    channel: str | None
    licence: str | None


class Answer(NamedTuple):
    """What a site says of a URL."""

    is_list: bool
    """Whether it is a channel or playlist, to which films may be added."""
    items: list[Item]


def expand(url: str, folder: Path) -> list[Item]:
    """The films behind a URL: itself, or the entries of a channel or playlist.

    The site is not asked for a film that lies in `folder` already; where it gives no answer, its last one counts.
    Raises ValueError with one sentence when the site cannot be reached or offers no film, and never did.
    """
    kept = _kept(url, folder)
    if kept and not kept.is_list and _finished(folder, _stem(kept.items[0].url)):
        return kept.items
    try:
        with _session({"extract_flat": "in_playlist"}) as session:
            found = _guarded(url, lambda: session.extract_info(url, download=False)) or {}
        return _noted(found, url, folder)
    except ValueError as error:
        return _instead(url, folder, error)


def _noted(found: dict[str, Any], url: str, folder: Path) -> list[Item]:
    """The films that an answer names, kept beside the downloads. Raises ValueError when there are none."""
    answer = Answer(found.get("_type") in LISTS, _items(found, url))
    items = [item._asdict() for item in answer.items]
    files.write_json(_note(url, folder), {"is_list": answer.is_list, "items": items})
    return answer.items


def _kept(url: str, folder: Path) -> Answer | None:
    """The last answer of a URL's site."""
    try:
        kept = files.read_json(_note(url, folder))
        return Answer(kept["is_list"], [Item(**item) for item in kept["items"]])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _instead(url: str, folder: Path, error: ValueError) -> list[Item]:
    """What is known of a URL without its site. Raises `error` when that is of no use."""
    kept = _kept(url, folder)
    if kept and kept.is_list:
        items = kept.items
    elif _finished(folder, _stem(url)):
        items = [Item(url, url, None, None, None)]
    else:
        raise error
    logger.warning("ingest: %s; what it offered before is used", error)
    return items


def _note(url: str, folder: Path) -> Path:
    # Not `{stem}.`, by which the film itself is found.
    return folder / f"{_stem(url)}-answer.json"


def _stem(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def _items(found: dict[str, Any], url: str) -> list[Item]:
    if found.get("_type") in LISTS:
        items: list[Item] = []
        for entry in found.get("entries") or []:
            items += _items(entry or {}, url)
        if not items:
            raise ValueError(f"{url} lists no film")
        return items
    place = found.get("webpage_url") or found.get("url") or url
    if found.get("extractor_key") == "Generic" or found.get("direct"):
        place = found.get("url") or place
    channel = found.get("channel") or found.get("uploader")
    return [Item(_plain(place), place, found.get("title"), channel, found.get("license"))]


def _plain(url: str) -> str:
    from yt_dlp.utils import unsmuggle_url

    return str(unsmuggle_url(url)[0])


def fetch(item: Item, folder: Path, max_height: int) -> Path | list[Item]:
    """Download a film into `folder` unless it is there already; a broken download is continued.

    What turns out to be a list itself, as the tabs of a channel and the seasons of a series do, is not downloaded: its
    entries are returned, those of last time where the site gives no answer. Raises ValueError with one sentence, and
    OSError when the disk is full.
    """
    stem = _stem(item.url)
    done = _finished(folder, stem)
    if done:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "outtmpl": str(folder / f"{stem}.%(ext)s"),
        "continuedl": True,
        "format": FORMAT.format(max_height),
        "noplaylist": True,
        "extract_flat": "in_playlist",
    }
    with _session(options) as session:
        try:
            found = _guarded(item.url, lambda: session.extract_info(item.address, download=False)) or {}
            if found.get("_type") in LISTS:
                return _noted(found, item.url, folder)
        except ValueError as error:
            return _instead(item.url, folder, error)
        if found.get("is_live"):
            # Its download would end when the stream does.
            raise ValueError(f"{item.url} is a live stream that has not ended: run ingest again when it has")
        _guarded(item.url, lambda: session.process_ie_result(found, download=True))
    done = _finished(folder, stem)
    if not done:
        raise ValueError(f"{item.url} was downloaded but left no file")
    return done


def _finished(folder: Path, stem: str) -> Path | None:
    """The whole film, and not the pieces of one (`.part`, `.part-Frag7`, `.temp.mp4`) that an interruption left."""
    whole = [path for path in sorted(folder.glob(f"{stem}.*")) if path.name == stem + path.suffix]
    return next((path for path in whole if path.suffix not in (".part", ".ytdl", ".temp")), None)


def _session(options: dict[str, Any]) -> Any:
    from yt_dlp import YoutubeDL

    quiet = {
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": _Silent(),
        "socket_timeout": TIMEOUT_S,
        "retries": ATTEMPTS,
        "fragment_retries": ATTEMPTS,
        "extractor_retries": 1,
        "cachedir": False,
    }
    return YoutubeDL({**quiet, **options})


def _guarded(url: str, action: Any) -> Any:
    """What `action` returns. Raises ValueError for all that ends one film only, and OSError when the disk is full."""
    from yt_dlp.utils import YoutubeDLError

    try:
        return action()
    except Exception as error:
        # Errors of other kinds are those of one of many extractors, for one site.
        kind = "" if isinstance(error, YoutubeDLError | OSError) else f"unexpected {type(error).__name__}: "
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in str(error) for sign in FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), url) from error
        raise ValueError(_sentence(url, kind + str(error))) from error


def _sentence(url: str, complaint: str) -> str:
    words = re.sub(r"\x1b\[[0-9;]*m", "", complaint).removeprefix("ERROR: ").split(" (caused by")[0]
    words = words.split("; please report")[0].strip().rstrip(".")
    if any(sign in complaint for sign in UNREACHABLE):
        host = urlsplit(url).hostname or url
        return f"{url} cannot be downloaded: no connection to {host}; run ingest again when the network is back"
    return f"{url} cannot be downloaded: {words.splitlines()[0] if words else 'no reason given'}"


class _Silent:
    """yt-dlp speaks through exceptions only; what it would print goes to the debug log."""

    def debug(self, message: str) -> None:
        logger.debug(message)

    info = warning = error = debug
