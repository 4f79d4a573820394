"""Films from a web server on loopback: single ones, a feed of several, and a download that broke off."""

import http.server
import re
import threading
from pathlib import Path

import pytest

from brickreel.films import download
from films import synth

FEED = """<?xml version="1.0"?><rss version="2.0"><channel><title>Brick Channel</title>
<item><title>One</title><link>{base}/one.mp4</link><enclosure url="{base}/one.mp4" type="video/mp4"/></item>
<item><title>Two</title><link>{base}/two.mp4</link><enclosure url="{base}/two.mp4" type="video/mp4"/></item>
</channel></rss>"""


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


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    for seed, name in enumerate(("one.mp4", "two.mp4")):
        synth.Film().add(synth.scene(seed, 8), [1] * 8).write(folder / name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.ranges, server.base = folder, [], f"http://127.0.0.1:{server.server_address[1]}"
    (folder / "feed.xml").write_text(FEED.format(base=server.base))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_one_film_is_fetched_once(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4")
    path = download.fetch(item, tmp_path / "films", 1080)
    assert path.read_bytes() == (site.folder / "one.mp4").read_bytes()
    asked = len(site.ranges)
    assert download.fetch(item, tmp_path / "films", 1080) == path
    assert len(site.ranges) == asked


def test_a_feed_is_expanded_into_its_films(site, tmp_path):
    items = download.expand(f"{site.base}/feed.xml")
    assert [Path(item.url).name for item in items] == ["one.mp4", "two.mp4"]
    fetched = [download.fetch(item, tmp_path / "films", 1080) for item in items]
    assert [path.read_bytes() for path in fetched] == [
        (site.folder / name).read_bytes() for name in ("one.mp4", "two.mp4")
    ]


def test_a_broken_download_goes_on_where_it_stopped(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4")
    whole = (site.folder / "one.mp4").read_bytes()
    done = download.fetch(item, tmp_path / "films", 1080)
    done.unlink()
    done.with_name(f"{done.name}.part").write_bytes(whole[:1000])
    site.ranges.clear()
    assert download.fetch(item, tmp_path / "films", 1080).read_bytes() == whole
    assert ("/one.mp4", 1000) in site.ranges


def test_a_film_that_is_not_there_is_one_sentence(site):
    with pytest.raises(ValueError, match=r"/none.mp4 cannot be downloaded: .*404"):
        download.expand(f"{site.base}/none.mp4")
