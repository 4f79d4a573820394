"""Films from a web server on loopback: single ones, a feed of several, and a download that broke off."""

from pathlib import Path

import pytest

from brickreel.films import download
from films.site import served


@pytest.fixture
def site(tmp_path):
    with served(tmp_path / "site") as server:
        yield server


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


def test_pieces_that_an_interruption_left_are_no_film(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4")
    done = download.fetch(item, tmp_path / "films", 1080)
    whole = done.read_bytes()
    done.unlink()
    for piece in ("mp4.part-Frag7", "temp.mp4", "mp4.ytdl"):
        done.with_name(f"{done.stem}.{piece}").write_bytes(b"half a film")
    assert download.fetch(item, tmp_path / "films", 1080).read_bytes() == whole


def test_a_list_in_a_list_is_given_back_as_its_entries(site, tmp_path):
    season, *_ = download.expand(f"{site.base}/channel.xml")
    assert season.url == f"{site.base}/feed.xml"
    found = download.fetch(season, tmp_path / "films", 1080)
    assert [(item.title, item.url) for item in found] == [
        ("One", f"{site.base}/one.mp4"),
        ("Two", f"{site.base}/two.mp4"),
    ]
    assert not (tmp_path / "films").exists() or not list((tmp_path / "films").iterdir())


def test_a_film_that_is_not_there_is_one_sentence(site):
    with pytest.raises(ValueError, match=r"/none.mp4 cannot be downloaded: .*404"):
        download.expand(f"{site.base}/none.mp4")
