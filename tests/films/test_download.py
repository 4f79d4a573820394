"""Films from a web server on loopback: single ones, a feed of several, and a download that broke off."""

import errno
from pathlib import Path

import pytest

from brickreel.films import download
from films.site import feed, served


@pytest.fixture
def site(tmp_path):
    with served(tmp_path / "site") as server:
        yield server


def test_one_film_is_fetched_once(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    path = download.fetch(item, tmp_path / "films", 1080)
    assert path.read_bytes() == (site.folder / "one.mp4").read_bytes()
    asked = len(site.ranges)
    assert download.fetch(item, tmp_path / "films", 1080) == path
    assert len(site.ranges) == asked


def test_a_feed_is_expanded_into_its_films(site, tmp_path):
    items = download.expand(f"{site.base}/feed.xml", tmp_path / "films")
    assert [Path(item.url).name for item in items] == ["one.mp4", "two.mp4"]
    fetched = [download.fetch(item, tmp_path / "films", 1080) for item in items]
    assert [path.read_bytes() for path in fetched] == [
        (site.folder / name).read_bytes() for name in ("one.mp4", "two.mp4")
    ]


def test_a_broken_download_goes_on_where_it_stopped(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    whole = (site.folder / "one.mp4").read_bytes()
    done = download.fetch(item, tmp_path / "films", 1080)
    done.unlink()
    done.with_name(f"{done.name}.part").write_bytes(whole[:1000])
    site.ranges.clear()
    assert download.fetch(item, tmp_path / "films", 1080).read_bytes() == whole
    assert ("/one.mp4", 1000) in site.ranges


def test_pieces_that_an_interruption_left_are_no_film(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    done = download.fetch(item, tmp_path / "films", 1080)
    whole = done.read_bytes()
    done.unlink()
    for piece in ("mp4.part-Frag7", "temp.mp4", "mp4.ytdl"):
        done.with_name(f"{done.stem}.{piece}").write_bytes(b"half a film")
    assert download.fetch(item, tmp_path / "films", 1080).read_bytes() == whole


def test_a_list_in_a_list_is_given_back_as_its_entries(site, tmp_path):
    season, *_ = download.expand(f"{site.base}/channel.xml", tmp_path / "films")
    assert season.url == f"{site.base}/feed.xml"
    found = download.fetch(season, tmp_path / "films", 1080)
    assert [(item.title, item.url) for item in found] == [
        ("One", f"{site.base}/one.mp4"),
        ("Two", f"{site.base}/two.mp4"),
    ]
    assert {path.suffix for path in (tmp_path / "films").iterdir()} == {".json"}


def test_a_film_that_is_not_there_is_one_sentence(site, tmp_path):
    with pytest.raises(ValueError, match=r"/none.mp4 cannot be downloaded: .*404"):
        download.expand(f"{site.base}/none.mp4", tmp_path / "films")


def test_a_film_that_is_here_needs_no_site(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    path = download.fetch(item, tmp_path / "films", 1080)
    (site.folder / "one.mp4").unlink()
    site.ranges.clear()
    assert download.expand(f"{site.base}/one.mp4", tmp_path / "films") == [item]
    assert download.fetch(item, tmp_path / "films", 1080) == path
    assert site.ranges == []


def test_a_film_that_came_before_answers_were_kept_needs_no_site(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    download.fetch(item, tmp_path / "films", 1080)
    (site.folder / "one.mp4").unlink()
    next((tmp_path / "films").glob("*.json")).unlink()
    (found,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    assert found.url == item.url


def test_a_list_without_its_site_is_what_it_was_and_the_log_says_so(site, tmp_path, caplog):
    films = tmp_path / "films"
    items = download.expand(f"{site.base}/channel.xml", films)
    entries = download.fetch(items[0], films, 1080)
    for name in ("channel.xml", "feed.xml"):
        (site.folder / name).unlink()
    assert [item.url for item in download.expand(f"{site.base}/channel.xml", films)] == [item.url for item in items]
    assert download.fetch(items[0], films, 1080) == entries
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "channel.xml cannot be downloaded: " in caplog.text


def test_a_list_of_one_film_is_asked_for_others(site, tmp_path):
    (site.folder / "feed.xml").write_text(feed(site.base, One="one.mp4"))
    (item,) = download.expand(f"{site.base}/feed.xml", tmp_path / "films")
    download.fetch(item, tmp_path / "films", 1080)
    (site.folder / "feed.xml").write_text(feed(site.base, One="one.mp4", Two="two.mp4"))
    assert len(download.expand(f"{site.base}/feed.xml", tmp_path / "films")) == 2


def test_a_film_that_is_neither_here_nor_there_is_no_film(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    (site.folder / "one.mp4").unlink()
    with pytest.raises(ValueError, match="404"):
        download.expand(item.url, tmp_path / "films")
    with pytest.raises(ValueError, match="404"):
        download.fetch(item, tmp_path / "films", 1080)


def test_of_a_sites_versions_the_one_without_hdr_is_taken():
    from yt_dlp import YoutubeDL

    def version(name, height, **more):
        kind = {"vcodec": "av1", "acodec": "none", "ext": "mp4", "url": f"http://a/{name}"}
        return {"format_id": name, "height": height, **kind, **more}

    def chosen(*versions):
        with YoutubeDL({"quiet": True, "format": download.FORMAT.format(1080)}) as session:
            found = {"id": "a", "title": "a", "extractor": "a", "formats": list(versions)}
            return session.process_ie_result(found, download=False)["format_id"]

    hdr, sdr = version("hdr", 1080, dynamic_range="HDR10"), version("sdr", 1080, dynamic_range="SDR")
    small, large = version("small", 360), version("large", 2160)
    assert chosen(small, sdr, hdr, large) == chosen(small, hdr, sdr) == "sdr"
    assert chosen(small, hdr) == "small"
    assert chosen(hdr, large) == "hdr"
    assert chosen(large) == "large"


def test_a_stream_that_is_still_running_is_not_waited_for(site, tmp_path):
    running = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:1\n#EXTINF:2,\none.mp4\n"
    (site.folder / "live.m3u8").write_text(running)
    (item,) = download.expand(f"{site.base}/live.m3u8", tmp_path / "films")
    with pytest.raises(ValueError, match="is a live stream that has not ended"):
        download.fetch(item, tmp_path / "films", 1080)


def test_a_full_disk_is_no_fault_of_the_film(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    (tmp_path / "films" / f"{download._stem(item.url)}.mp4.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        download.fetch(item, tmp_path / "films", 1080)
    assert raised.value.errno == errno.ENOSPC


def test_a_folder_that_may_not_be_written_is_not_called_a_network(site, tmp_path):
    films = tmp_path / "films"
    (item,) = download.expand(f"{site.base}/one.mp4", films)
    (films / f"{download._stem(item.url)}.mp4.part").mkdir()
    with pytest.raises(ValueError, match=r"one.mp4 cannot be downloaded: .*Is a directory"):
        download.fetch(item, films, 1080)


def test_a_mistake_of_one_extractor_is_one_sentence(site, tmp_path, monkeypatch):
    from yt_dlp.extractor.generic import GenericIE

    def mistaken(self, url):
        raise TypeError("'NoneType' object is not subscriptable")

    monkeypatch.setattr(GenericIE, "_real_extract", mistaken)
    with pytest.raises(ValueError, match=r"one.mp4 cannot be downloaded: .*TypeError: 'NoneType' object"):
        download.expand(f"{site.base}/one.mp4", tmp_path / "films")


def test_a_film_that_is_here_stays_as_it_is_whatever_height_is_asked_for(site, tmp_path):
    (item,) = download.expand(f"{site.base}/one.mp4", tmp_path / "films")
    path = download.fetch(item, tmp_path / "films", 1080)
    assert download.fetch(item, tmp_path / "films", 360) == path
