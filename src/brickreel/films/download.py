"""Films from the network, through yt-dlp: single ones, channels and playlists. Downloads resume."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

logger = logging.getLogger("brickreel")

TIMEOUT_S = 20.0
ATTEMPTS = 3
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


def expand(url: str) -> list[Item]:
    """The films behind a URL: itself, or the entries of a channel or playlist.

    Raises ValueError with one sentence when the site cannot be reached or offers no film.
    """
    with _session({"extract_flat": "in_playlist"}) as session:
        found = _guarded(url, lambda: session.extract_info(url, download=False))
    return list(_items(found or {}, url))


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
    entries are returned. Raises ValueError with one sentence.
    """
    stem = hashlib.sha256(item.url.encode()).hexdigest()[:16]
    done = _finished(folder, stem)
    if done:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "outtmpl": str(folder / f"{stem}.%(ext)s"),
        "continuedl": True,
        "format": f"bv*[height<={max_height}]/b[height<={max_height}]/bv*/b",
        "noplaylist": True,
        "extract_flat": "in_playlist",
    }
    with _session(options) as session:
        found = _guarded(item.url, lambda: session.extract_info(item.address, download=False)) or {}
        if found.get("_type") in LISTS:
            return list(_items(found, item.url))
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
    from yt_dlp.utils import YoutubeDLError

    try:
        return action()
    except YoutubeDLError as error:
        raise ValueError(_sentence(url, str(error))) from None


def _sentence(url: str, complaint: str) -> str:
    words = re.sub(r"\x1b\[[0-9;]*m", "", complaint).removeprefix("ERROR: ").split(" (caused by")[0]
    words = words.split("; please report")[0].strip().rstrip(".")
    unreachable = ("resolve", "refused", "unreachable", "timed out", "Name or service", "Errno", "Failed to establish")
    if any(sign in complaint for sign in unreachable):
        host = urlsplit(url).hostname or url
        return f"{url} cannot be downloaded: no connection to {host}; run ingest again when the network is back"
    return f"{url} cannot be downloaded: {words.splitlines()[0] if words else 'no reason given'}"


class _Silent:
    """yt-dlp speaks through exceptions only; what it would print goes to the debug log."""

    def debug(self, message: str) -> None:
        logger.debug(message)

    info = warning = error = debug
