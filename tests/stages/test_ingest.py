"""Every film listed ends with an outcome and a reason."""

import errno
import os

import pytest

from brickreel import config, files, tables
from brickreel.films import download, isolated
from brickreel.stages import ingest
from films import project, synth
from films.site import served


def sources():
    return {row["path"]: row for row in tables.read("sources", ingest.OUTPUT).to_pylist()}


def test_films_are_probed_and_the_rest_has_a_reason(films_project):
    rows = sources()
    first, notes = rows[project.FIRST], rows["notes.mp4"]
    assert (first["outcome"], first["width"], first["fps"], first["licence"]) == ("ok", 320, 24.0, "CC0")
    assert len(first["film_id"]) == 16
    assert (notes["outcome"], notes["film_id"]) == ("failed", None)
    assert "is not a video file" in notes["reason"]


def test_a_film_without_a_licence_needs_leave_and_is_marked(films_project):
    project.listed(films_project, [[project.SECOND, "", ""], [project.FIRST, "", "CC0"]])
    project.run("ingest")
    assert sources()[project.SECOND]["outcome"] == "dropped"
    assert "allow_unlicensed" in sources()[project.SECOND]["reason"]
    project.run("ingest", settings=config.load({"ingest": {"allow_unlicensed": True}}))
    assert (sources()[project.SECOND]["outcome"], sources()[project.SECOND]["licence"]) == ("ok", "unlicensed")


def test_a_name_that_is_no_text_is_a_reason(films_project):
    odd = os.fsencode(films_project) + b"/folder/\xe9t\xe9.mp4"
    (films_project / "folder").mkdir()
    with open(odd, "wb") as stream:
        stream.write((films_project / project.SECOND).read_bytes())
    project.listed(films_project, [["folder", "", "CC0"], [project.FIRST, "", "CC0"]])
    project.run("ingest")
    (failed,) = [row for row in sources().values() if row["outcome"] == "failed"]
    assert failed["reason"] == "has a name that is not UTF-8: rename the file"


def test_the_same_film_twice_is_used_once(films_project):
    (films_project / "copy.mp4").write_bytes((films_project / project.SECOND).read_bytes())
    project.listed(films_project, [[project.SECOND, "", "CC0"], ["copy.mp4", "", "CC0"]])
    project.run("ingest")
    assert sources()["copy.mp4"]["reason"] == "has the same content as second.mp4"


def test_no_film_that_can_be_used_is_one_sentence(films_project):
    project.listed(films_project, [["notes.mp4", "", "CC0"], ["gone.mp4", "", "CC0"]])
    with pytest.raises(ValueError, match=r"lists no film that can be used; the first, notes.mp4: is not a video file"):
        project.run("ingest")
    assert sources()["gone.mp4"]["reason"] == "cannot be opened: No such file or directory"


def test_an_address_without_network_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synth.Film().add(synth.scene(1, 8), [1] * 8).write(tmp_path / "a.mp4")
    (tmp_path / "sources.csv").write_text("path,url,licence\na.mp4,,CC0\n,http://127.0.0.1:9/film.mp4,CC0\n")
    project.run("ingest")
    (failed,) = [row for row in sources().values() if row["outcome"] == "failed"]
    assert failed["reason"].startswith("http://127.0.0.1:9/film.mp4 cannot be downloaded: no connection to 127.0.0.1")


def test_a_channel_becomes_its_films_with_what_the_site_and_the_list_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with served(tmp_path / "site") as site:
        lines = f"url,title,channel,licence\n{site.base}/channel.xml,,Mine,CC-BY\n{site.base}/two.mp4,,,CC0\n"
        (tmp_path / "sources.csv").write_text(lines)
        project.run("ingest")
        rows = tables.read("sources", ingest.OUTPUT).to_pylist()
        found = {(row["title"], row["url"].rsplit("/")[-1], row["channel"], row["licence"]) for row in rows[:-1]}
        assert found == {(title, f"{title.lower()}.mp4", "Mine", "CC-BY") for title in ("One", "Two", "Three", "Gone")}
        assert [row["title"] for row in rows if row["outcome"] == "ok"] == ["Three", "One", "Two"]
        assert "404" in next(row["reason"] for row in rows if row["title"] == "Gone")
        assert rows[-1]["reason"].startswith("has the same content as")
        # What is there is not asked for again.
        site.ranges.clear()
        project.run("ingest")
        assert [name for name, _ in site.ranges if name in ("/one.mp4", "/three.mp4")] == []


def test_a_download_that_is_larger_than_asked_for_now_is_used_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "brickreel")
    with served(tmp_path / "site") as site:
        (tmp_path / "sources.csv").write_text(f"url,licence\n{site.base}/one.mp4,CC0\n")
        for height in (1080, 180, 179):
            assert "max_height" not in caplog.text
            project.run("ingest", settings=config.load({"ingest": {"max_height": height}}))
    assert "has more rows than ingest.max_height and is used as it is" in caplog.text
    (row,) = tables.read("sources", ingest.OUTPUT).to_pylist()
    assert (row["outcome"], row["height"]) == ("ok", 180)


def test_a_full_disk_stops_the_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with served(tmp_path / "site") as site:
        url = f"{site.base}/one.mp4"
        (tmp_path / "sources.csv").write_text(f"url,licence\n{url},CC0\n{site.base}/two.mp4,CC0\n")
        ingest.DOWNLOADS.mkdir(parents=True)
        (ingest.DOWNLOADS / f"{download._stem(url)}.mp4.part").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            project.run("ingest")
    assert not ingest.OUTPUT.exists()


def test_films_that_were_downloaded_need_no_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with served(tmp_path / "site") as site:
        lines = f"url,licence\n{site.base}/feed.xml,CC-BY\n{site.base}/three.mp4,CC0\n"
        (tmp_path / "sources.csv").write_text(lines)
        project.run("ingest")
        before = tables.read("sources", ingest.OUTPUT).to_pylist()
    assert [row["outcome"] for row in before] == ["ok"] * 3
    project.run("ingest")
    assert tables.read("sources", ingest.OUTPUT).to_pylist() == before


def away(project_folder, listed):
    """A project of two films, of which the second is on a file system that is not mounted any more."""
    place = project_folder / "mounted"
    place.mkdir()
    (project_folder / project.SECOND).rename(place / "film.mp4")
    project.listed(project_folder, [[project.FIRST, "", "CC0"], [listed, "", "CC0"]])
    project.run("ingest")
    assert [row["outcome"] for row in sources().values()] == ["ok", "ok"]
    (place / "film.mp4").rename(project_folder / "hidden")
    return place


@pytest.mark.parametrize("listed", ["mounted/film.mp4", "mounted", "mounted/*.mp4", "*/*.mp4", "mounted/**/*.mp4"])
def test_films_of_a_file_system_that_is_away_stop_the_stage_and_lose_nothing(films_project, listed, probed):
    place = away(films_project, listed)
    before, journal = sources(), ingest.FINISHED.read_text()
    with pytest.raises(FileNotFoundError, match="is a file system not mounted here"):
        project.run("ingest")
    assert (sources(), ingest.FINISHED.read_text()) == (before, journal)
    (films_project / "hidden").rename(place / "film.mp4")
    names, _ = probed
    names.clear()
    project.run("ingest")
    assert names == []


def test_a_link_to_a_file_system_that_is_away_stops_the_stage(films_project):
    place = films_project / "mounted"
    place.mkdir()
    (films_project / project.SECOND).rename(place / "film.mp4")
    (films_project / "links").mkdir()
    for name, target in (("first.mp4", films_project / project.FIRST), ("second.mp4", place / "film.mp4")):
        (films_project / "links" / name).symlink_to(target)
    project.listed(films_project, [["links", "", "CC0"]])
    project.run("ingest")
    (place / "film.mp4").rename(films_project / "hidden")
    with pytest.raises(FileNotFoundError, match="is a file system not mounted here"):
        project.run("ingest")


def test_a_film_that_was_deleted_is_a_reason_or_forgotten(films_project):
    for name in ("one.mp4", "two.mp4"):
        (films_project / "mine").mkdir(exist_ok=True)
        synth.Film().add(synth.scene(len(name), 8), [1] * 8).write(films_project / "mine" / name)
    project.listed(films_project, [["mine", "", "CC0"], [project.SECOND, "", "CC0"]])
    project.run("ingest")
    (films_project / "mine" / "two.mp4").unlink()
    (films_project / project.SECOND).unlink()
    project.run("ingest")
    assert {path: row["outcome"] for path, row in sources().items()} == {"mine/one.mp4": "ok", project.SECOND: "failed"}
    assert {line["path"] for line in files.read_json_lines(ingest.FINISHED)} == {"mine/one.mp4", project.SECOND}


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_film_that_cannot_be_read_for_a_reason_that_passes_stops_the_stage(films_project, monkeypatch, number):
    journal = ingest.FINISHED.read_text()
    os.utime(films_project / project.SECOND, ns=(1, 1))

    def stale(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "sha256", stale)
    with pytest.raises(OSError, match="second"):
        project.run("ingest")
    assert ingest.FINISHED.read_text() == journal


@pytest.fixture
def probed(monkeypatch):
    """Names of the films that are probed, in order; one called in `deadly` kills the stage."""
    call, names = isolated.call, []

    def counted(work, arguments, limits):
        names.append(os.path.basename(arguments[0]))
        if names[-1] in counted.deadly:
            raise KeyboardInterrupt
        return call(work, arguments, limits)

    counted.deadly = set()
    monkeypatch.setattr(isolated, "call", counted)
    return names, counted.deadly


def test_a_stage_that_is_killed_goes_on_with_the_films_it_had_not_read(films_project, probed):
    names, deadly = probed
    before = sources()
    ingest.FINISHED.unlink()
    deadly.add(project.SECOND)
    with pytest.raises(KeyboardInterrupt):
        project.run("ingest")
    deadly.clear()
    names.clear()
    project.run("ingest")
    assert names == [project.SECOND, "notes.mp4"]
    assert sources() == before


def test_films_are_read_again_when_they_change_or_failed_and_forgotten_when_unlisted(films_project, probed):
    names, _ = probed
    project.run("ingest")
    # What failed may have had a passing cause.
    assert names == ["notes.mp4"]
    names.clear()
    os.utime(films_project / project.SECOND, ns=(1, 1))
    project.listed(films_project, [[project.SECOND, "Another title", "CC0"]])
    project.run("ingest")
    assert names == [project.SECOND]
    assert sources()[project.SECOND]["title"] == "Another title"
    assert [line["path"] for line in files.read_json_lines(ingest.FINISHED)] == [project.SECOND]
