"""A web server on loopback with films, feeds of films, and a feed of feeds, as a channel with seasons is."""

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from films import synth

ITEM = '<item><title>{title}</title><guid>{title}</guid><enclosure url="{base}/{name}" type="video/mp4"/></item>'
LIST = '<?xml version="1.0"?><rss version="2.0"><channel><title>Brick Channel</title>{items}</channel></rss>'


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder with byte ranges, and remembers what was asked for."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, asked = path.read_bytes(), re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        self.server.ranges.append((self.path, start))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/rss+xml" if path.suffix == ".xml" else "video/mp4")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start:])

    def log_message(self, *words):
        pass


def feed(base: str, **titles: str) -> str:
    """An RSS feed of title -> name of the file."""
    return LIST.format(items="".join(ITEM.format(base=base, title=title, name=name) for title, name in titles.items()))


@contextmanager
def served(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serves one.mp4, two.mp4, three.mp4, feed.xml with the first two, and channel.xml with that feed, a film, itself
    and a film that is gone."""
    folder.mkdir()
    for seed, name in enumerate(("one.mp4", "two.mp4", "three.mp4")):
        synth.Film().add(synth.scene(seed, 8), [1] * 8).write(folder / name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.ranges, server.base = folder, [], f"http://127.0.0.1:{server.server_address[1]}"
    (folder / "feed.xml").write_text(feed(server.base, One="one.mp4", Two="two.mp4"))
    channel = feed(server.base, Season="feed.xml", Three="three.mp4", Again="channel.xml", Gone="gone.mp4")
    (folder / "channel.xml").write_text(channel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
