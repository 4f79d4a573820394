"""Every candidate has an outcome and a reason, and the page shows them."""

import html
import re
import shutil

import av
import numpy as np
import pytest

from brickreel import config, tables
from brickreel.films import decode, withdrawn
from brickreel.stages import analyze, curate, ingest
from films import project, synth


def clips():
    return tables.read("clips", curate.OUTPUT).to_pylist()


def curated(**settings):
    project.run("curate", settings=config.load({"curate": settings}))
    return clips()


def test_titles_short_shots_and_repeated_scenes_are_dropped(films_project):
    found = {(row["title"], row["start_frame"], row["end_frame"]): row["reason"] for row in clips()}
    assert found == {
        ("The First", 0, 24): "title_card",
        ("The First", 24, 64): "",
        ("The First", 64, 104): "",
        ("The Second", 0, 18): "",
        ("The Second", 18, 58): "near_duplicate",
        ("The Second", 58, 70): "too_short",
    }
    (copy,) = [row for row in clips() if row["reason"] == "near_duplicate"]
    (kept,) = [row for row in clips() if (row["title"], row["start_frame"]) == ("The First", 64)]
    assert copy["duplicate_of"] == kept["clip_id"]


def damaged(path):
    """A film of 200 frames of which a few seconds cannot be decoded."""
    with av.open(str(path), "w") as container:
        told = "log-level=none:keyint=20:min-keyint=20:bframes=0"
        stream = container.add_stream("libx265", rate=24, options={"x265-params": told, "preset": "ultrafast"})
        stream.width, stream.height = 320, 180
        for picture in synth.scene(1, 200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for pos, size in places[118:178]:
        data[pos + 4 : pos + size] = b"\xff" * (size - 4)
    path.write_bytes(data)


def test_no_clip_reaches_over_what_cannot_be_decoded(films_project):
    damaged(films_project / "damaged.mp4")
    project.listed(films_project, [["damaged.mp4", "Damaged", "CC0"]])
    project.run("ingest", "analyze", "curate")
    (film,) = tables.read("sources", ingest.OUTPUT).to_pylist()
    assert (film["fps"], film["variable_rate"]) == (24.0, False)
    times = [picture.time_s for picture in decode.pictures(films_project / "damaged.mp4", 90)]
    hole = int(np.argmax(np.diff(times))) + 1
    assert times[hole] - times[hole - 1] > 2
    ends = [(row["start_frame"], row["end_frame"]) for row in clips()]
    assert [one for one in ends if one[0] < hole < one[1]] == []
    assert hole in [end for _, end in ends]


def test_no_film_is_in_both_splits_and_the_rest_has_none(films_project):
    splits = {}
    for row in clips():
        assert (row["split"] is None) == (row["outcome"] != "ok")
        splits.setdefault(row["split"], set()).add(row["film_id"])
    assert splits["train"]
    assert splits["heldout"]
    assert splits["train"].isdisjoint(splits["heldout"])


def test_new_films_leave_the_others_on_their_side_of_the_split():
    def heldout(count):
        ids = [f"{number:016x}" for number in range(count)]
        return {ids[film] for film in curate._heldout(ids, np.arange(count), config.Curate(heldout_share=0.2))}

    few, many = heldout(100), heldout(1000)
    assert few == {film for film in many if int(film, 16) < 100}
    assert 150 < len(many) < 250
    assert len(heldout(2)) == 1


def test_provenance_travels_with_every_clip(films_project):
    assert {(row["path"], row["licence"]) for row in clips()} == {(project.FIRST, "CC0"), (project.SECOND, "CC-BY")}


def test_a_changed_threshold_needs_no_film(films_project):
    for name in (project.FIRST, project.SECOND):
        (films_project / name).unlink()
    found = curated(min_poses=5, duplicate_bits=0, max_poses=10)
    assert max(len(row["pose_frames"]) for row in found) <= 10
    assert "too_short" not in {row["reason"] for row in found if row["title"] == "The Second"}


def test_a_withdrawn_film_is_dropped_by_list_or_setting(films_project):
    first = next(r["film_id"] for r in tables.read("sources", ingest.OUTPUT).to_pylist() if r["title"] == "The First")
    assert {row["reason"] for row in curated(withdrawn=[first]) if row["film_id"] == first} == {
        "title_card", "withdrawn",
    }  # fmt: skip
    withdrawn.add(first, "The First", [])
    assert {row["outcome"] for row in curated() if row["film_id"] == first} == {"dropped"}


def test_the_copy_is_kept_where_the_original_was_withdrawn(films_project):
    first = next(r["film_id"] for r in tables.read("sources", ingest.OUTPUT).to_pylist() if r["title"] == "The First")
    kept = {(row["title"], row["start_frame"]) for row in curated(withdrawn=[first]) if row["outcome"] == "ok"}
    assert ("The Second", 18) in kept


def test_no_clip_that_passes_is_one_sentence_and_the_page_is_written(films_project):
    curate.AUDIT.unlink()
    with pytest.raises(ValueError, match=r"no clip passes: results/curate/audit.html shows why"):
        curated(min_poses=150)
    assert curate.AUDIT.exists()


def test_the_page_is_offline_and_escapes_what_people_wrote(films_project):
    project.listed(films_project, [[project.FIRST, "<script>alert(1)</script>", "CC0"], [project.SECOND, "B", "CC0"]])
    project.run("ingest", "curate")
    page = curate.AUDIT.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"' >]+""", page) == []
    assert page.count("data:image/jpeg;base64,") == 6
    for reason in ("title_card", "near_duplicate", "too_short"):
        assert reason in page


def test_clips_of_films_with_one_title_are_told_apart_and_a_duplicate_names_what_it_is_the_same_as(films_project):
    page = html.unescape(curate.AUDIT.read_text(encoding="utf-8"))
    assert f"<figcaption>{project.FIRST} (The First)" in page
    assert re.search(rf"same as {project.FIRST}, frames \d+ to \d+", page)


def test_the_page_names_the_films_that_could_not_be_used(films_project):
    path = films_project / project.SECOND
    path.write_bytes(path.read_bytes()[:2000])
    shutil.rmtree(analyze.FINISHED)
    project.run("analyze", "curate")
    page = curate.AUDIT.read_text(encoding="utf-8")
    assert re.search(r"<code>notes.mp4</code> is not a video file", page)
    assert re.search(r"<code>second.mp4</code> is not a video file", page)
