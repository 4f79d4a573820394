import json
import logging
import time

import pyarrow.parquet as pq
import pytest

from brickreel import tables
from brickreel.stages import Shard, caption
from captions import project
from captions.project import ledger
from captions.server import FAULTS, PICTURE_TOKENS
from films import memory

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRICKREEL_TEST_KEY", KEY)
    monkeypatch.setattr("brickreel.captions.pace._FIRST_WAIT_S", 0.01)


def test_embedded_captioner_is_the_default_and_describes_every_clip_and_still(tmp_path):
    project.make(tmp_path)
    found = project.run()
    assert len(found) == 6
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert "moves" in found["c0", "clip"]["text"]
    assert "moves" not in found["s1", "still"]["text"]


def test_shards_divide_the_items_without_rest_or_overlap(tmp_path):
    project.make(tmp_path, clips=0, stills=12)
    for index in range(3):
        found = project.run(shard=f"{index}/3")
    assert set(found) == {(f"s{i}", "still") for i in range(12)}
    assert len(list(caption.CAPTIONS.glob("*.parquet"))) == 3


def test_part_that_is_started_again_while_the_page_is_written_fails_no_other_shard(tmp_path, monkeypatch):
    def review(*about):
        (caption.CAPTIONS / "01.parquet").unlink()
        for path in parts:
            tables.check_schema("captions", pq.read_schema(path), path)

    project.make(tmp_path, clips=0, stills=6)
    for index in range(2):
        project.run(shard=f"{index}/2")
    parts, page = tables.files_of(caption.CAPTIONS), tmp_path / "results/caption/review.html"
    page.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(caption.review, "write", review)
        project.run(shard="0/2")
    project.run(shard="1/2")
    assert page.exists()


def test_page_that_cannot_be_written_fails_the_stage(tmp_path):
    project.make(tmp_path, clips=0, stills=1)
    (tmp_path / "results/caption/review.html").mkdir(parents=True)
    with pytest.raises(OSError, match=r"review\.html"):
        project.run()


def test_unreadable_file_fails_alone_and_too_many_fail_the_stage(tmp_path):
    project.make(tmp_path, clips=0, stills=4)
    (tmp_path / "results/cut/stills/s2.jpg").write_bytes(b"not a picture")
    found = project.run()
    assert found["s2", "still"]["outcome"] == "failed"
    assert "not a readable picture" in found["s2", "still"]["reason"]
    assert found["s2", "still"]["text"] is None
    (tmp_path / "results/cut/stills/s3.jpg").unlink()
    with pytest.raises(ValueError, match="2 of 4 captions failed"):
        project.run()


def test_adopted_texts_are_a_persons_and_sentinels_among_them_are_dropped(tmp_path):
    path = tmp_path / "a.mp4"
    rows = [
        project.index_row("a", "clip", path, text="A cat sits on the mat."),
        project.index_row("b", "clip", path, text="Caption failed"),
        project.index_row("c", "clip", path, outcome="dropped", reason="short"),
    ]
    project.make(tmp_path, clips=0, stills=0, rows=rows)
    found = project.run()
    assert set(found) == {("a", "clip"), ("b", "clip")}
    assert (found["a", "clip"]["text"], found["a", "clip"]["source"]) == ("A cat sits on the mat.", "person")
    assert (found["b", "clip"]["outcome"], found["b", "clip"]["text"]) == ("dropped", None)


def test_corrections_win_over_the_machine_and_survive_a_rerun(tmp_path):
    project.make(tmp_path, clips=1, stills=2)
    (tmp_path / "corrections.csv").write_text('clip_id,kind,text\ns0,still,"A person\'s words, twice."\ns1,still,\n')
    for _ in range(2):
        found = project.run(corrections="corrections.csv")
        assert (found["s0", "still"]["text"], found["s0", "still"]["source"]) == ("A person's words, twice.", "person")
        assert (found["s1", "still"]["outcome"], found["s1", "still"]["reason"]) == ("dropped", "dropped by a person")
        assert found["c0", "clip"]["source"] == "machine"


def test_corrections_of_clips_that_are_not_there_are_named(tmp_path, caplog):
    project.make(tmp_path, clips=1, stills=1)
    (tmp_path / "corrections.csv").write_text(
        "clip_id,kind,text\nc0,clip,A person wrote this.\nc0,still,x\nC9,clip,y\n"
    )
    for index in range(2):
        project.run(shard=f"{index}/2", corrections="corrections.csv")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert "2 of the corrections in corrections.csv are for clips that are not in the dataset" in said[0]
    assert said[0].endswith("c0 (still), C9 (clip)")


def test_a_shard_holds_the_rows_of_its_own_clips_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("brickreel.captions.items.files.sha256", lambda path: "0")
    rows = [project.index_row(f"c{n}", "clip", tmp_path / "a.mp4", holds=list(range(300, 360))) for n in range(2000)]
    project.make(tmp_path, clips=0, stills=0, rows=rows)
    found = []

    def note(items, settings, shard):
        found.extend(item.clip_id for item in items)
        raise KeyboardInterrupt

    def run():
        with pytest.raises(KeyboardInterrupt):
            caption.run(project.settings(), shard)

    monkeypatch.setattr(caption, "_by_machine", note)
    whole = memory.peak(lambda: tables.read("cut_index", caption.INDEX).to_pylist())
    shard = Shard(0, 16)
    assert memory.peak(run) < whole / 4
    assert found == [row["clip_id"] for row in rows if shard.owns(row["clip_id"])]


@pytest.mark.parametrize("value", ["sk-proj-0123456789", "my key"])
def test_key_in_the_place_of_its_variables_name_is_refused(value):
    with pytest.raises(ValueError, match=r"caption\.api_key_env.*never the key itself"):
        project.settings(api_key_env=value)


def test_endpoint_gets_pictures_prompt_and_schema_and_its_price_is_kept(tmp_path):
    project.make(tmp_path, clips=1, stills=1)
    with project.serving() as server:
        server.keep_bodies = True
        found = project.run(url=server.url, material="clay", frames=3)
        bodies = server.bodies
    clip = next(body for body in bodies if len(body["messages"][0]["content"]) == 4)
    still = next(body for body in bodies if len(body["messages"][0]["content"]) == 2)
    assert "clay" in clip["messages"][0]["content"][0]["text"]
    assert "12 poses per second" in clip["messages"][0]["content"][0]["text"]
    assert "one picture" in still["messages"][0]["content"][0]["text"]
    assert clip["response_format"]["json_schema"]["strict"] is True
    row = found["c0", "clip"]
    assert row["outcome"] == "ok"
    assert row["tokens_in"] > 3 * PICTURE_TOKENS
    assert row["usd"] == pytest.approx(row["tokens_in"] * 10e-6 + row["tokens_out"] * 100e-6)
    assert row["prompt_version"] == "clip-2"


def test_nothing_is_asked_twice_across_reruns_and_another_number_of_shards(tmp_path):
    project.make(tmp_path, clips=1, stills=5)
    with project.serving() as server:
        first = project.run(url=server.url)
        for index in range(2):
            second = project.run(url=server.url, shard=f"{index}/2")
        assert server.requests == 6
        assert {n: r["text"] for n, r in first.items()} == {n: r["text"] for n, r in second.items()}
        project.run(url=server.url, model="another-model")
        assert server.requests == 12


def test_same_content_in_two_clips_is_paid_for_once(tmp_path):
    project.make(tmp_path, clips=0, stills=1)
    path = tmp_path / "results/cut/stills/s0.jpg"
    rows = [project.index_row(f"x{i}", "still", path) for i in range(5)]
    project.make(tmp_path, clips=0, stills=0, rows=rows)
    with project.serving(latency_s=0.1) as server:
        found = project.run(url=server.url)
        assert server.requests == 1
    assert len({row["text"] for row in found.values()}) == 1


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("refusal", "length", "banned")])
def test_passing_fault_is_overcome_and_stands_in_the_ledger(tmp_path, fault):
    project.make(tmp_path, clips=0, stills=1)
    with project.serving(script=[fault]) as server:
        found = project.run(url=server.url)
    assert found["s0", "still"]["outcome"] == "ok"
    assert server.requests == 2
    rows = ledger()
    assert [row["outcome"] for row in rows] == ["failed", "ok"]
    unclear = fault in ("drop", "drop-paid", "half-body", "502")
    free = fault in ("429", "429-after", "500")
    assert rows[0]["billed"] == ("unknown" if unclear else "none" if free else "reported")
    assert (rows[0]["usd"] == 0) == free


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("refusal", "refusal"), ("length", "cut at max_tokens"), ("banned", "banned words: video")],
)
def test_unusable_answers_are_asked_again_then_dropped_and_never_paid_for_again(tmp_path, fault, reason):
    project.make(tmp_path, clips=0, stills=1)
    with project.serving(script=[fault] * 3) as server:
        server.keep_bodies = True
        found = project.run(url=server.url)
        assert (found["s0", "still"]["outcome"], found["s0", "still"]["text"]) == ("dropped", None)
        assert reason in found["s0", "still"]["reason"]
        project.run(url=server.url)
        assert server.requests == 3
        assert reason in server.bodies[1]["messages"][0]["content"][-1]["text"]


def test_endpoint_without_structured_answers_is_paid_a_few_times_per_clip_in_all_runs_together(tmp_path):
    project.make(tmp_path, clips=0, stills=2)
    with project.serving(faults=1.0, kinds=("prose",)) as server:
        server.keep_bodies = True
        for _ in range(3):
            with pytest.raises(ValueError, match=r"captions failed, .*does not follow the schema"):
                project.run(url=server.url, concurrency=1, max_failed_share=0.5)
        assert server.requests == 6
        hints = [body["messages"][0]["content"][-1].get("text", "") for body in server.bodies]
        assert sum("does not follow the schema" in hint for hint in hints) == 4


def test_endpoint_that_answers_everything_in_prose_is_given_up(tmp_path):
    project.make(tmp_path, clips=0, stills=30)
    with project.serving(faults=1.0, kinds=("prose",)) as server:
        with pytest.raises(ValueError, match=r"failed 20 times in a row, .*does not follow the schema"):
            project.run(url=server.url, concurrency=1, max_failed_share=1.0)
        assert server.requests == 20


def test_answer_between_fences_is_an_answer(tmp_path):
    project.make(tmp_path, clips=0, stills=2)
    with project.serving(faults=1.0, kinds=("fenced",)) as server:
        found = project.run(url=server.url)
        assert server.requests == 2
    assert {row["outcome"] for row in found.values()} == {"ok"}


def test_larger_max_tokens_brings_cut_clips_back(tmp_path):
    project.make(tmp_path, clips=0, stills=1)
    with project.serving(script=["length"] * 3) as server:
        assert project.run(url=server.url, max_tokens=200)["s0", "still"]["outcome"] == "dropped"
        assert project.run(url=server.url, max_tokens=100)["s0", "still"]["outcome"] == "dropped"
        assert server.requests == 3
        assert project.run(url=server.url, max_tokens=400)["s0", "still"]["outcome"] == "ok"
        assert server.requests == 4
    assert [row["max_tokens"] for row in ledger()] == [200, 200, 200, 400]


def test_still_that_does_not_move_is_asked_for_again(tmp_path):
    project.make(tmp_path, clips=0, stills=1)
    with project.serving(script=["no-movement"]) as server:
        assert project.run(url=server.url)["s0", "still"]["outcome"] == "ok"


def test_stills_are_not_paid_again_when_the_rate_of_poses_changes(tmp_path):
    for rate in (12.0, 8.0):
        path = tmp_path / "results/cut/stills/s0.jpg"
        project.make(tmp_path, clips=0, stills=1)
        project.make(tmp_path, clips=0, stills=0, rows=[project.index_row("s0", "still", path, pose_rate=rate)])
        with project.serving() as server:
            project.run(url=server.url)
            assert server.requests == (1 if rate == 12.0 else 0)


@pytest.mark.parametrize("batch", [False, True])
def test_parameters_that_the_model_refuses_are_left_out_from_then_on(tmp_path, monkeypatch, batch):
    project.make(tmp_path, clips=0, stills=6)
    monkeypatch.setattr("brickreel.captions.underway.FIRST_POLL_S", 0.02)
    with project.serving() as server:
        server.refused, server.keep_bodies = ("max_tokens", "temperature"), True
        found = project.run(url=server.url, concurrency=1, attempts=3, batch=batch)
        assert sum(server.paid.values()) == 6
        if not batch:
            assert server.requests == 8
            assert all(body["max_completion_tokens"] == 200 for body in server.bodies[1:])
    assert {row["outcome"] for row in found.values()} == {"ok"}


@pytest.mark.parametrize("batch", [False, True])
def test_endpoint_that_takes_no_schema_is_asked_without(tmp_path, monkeypatch, batch):
    project.make(tmp_path, clips=0, stills=4)
    monkeypatch.setattr("brickreel.captions.underway.FIRST_POLL_S", 0.02)
    with project.serving(faults=1.0, kinds=("fenced",)) as server:
        server.no_schema = "This response_format type is unavailable now"
        found = project.run(url=server.url, concurrency=1, attempts=1, batch=batch)
        assert sum(server.paid.values()) == 4
        assert batch or server.requests == 5
    assert {row["outcome"] for row in found.values()} == {"ok"}


def test_parameter_that_is_refused_though_it_is_not_sent_fails_the_clip(tmp_path):
    project.make(tmp_path, clips=0, stills=1)
    with project.serving(faults=1.0, kinds=("wants-other-tokens",)) as server:
        with pytest.raises(ValueError, match="max_completion_tokens"):
            project.run(url=server.url, max_failed_share=0.0)
        assert server.requests == 2


def test_one_clip_that_the_endpoint_refuses_stops_no_other(tmp_path):
    project.make(tmp_path, clips=0, stills=4)
    with project.serving(script=["moderated"] * 3) as server:
        found = project.run(url=server.url, concurrency=1)
        assert server.requests == 6
    assert sorted(row["outcome"] for row in found.values()) == ["dropped", "ok", "ok", "ok"]
    assert "requires moderation" in next(row["reason"] for row in found.values() if row["outcome"] == "dropped")
    assert sum(row["usd"] for row in ledger() if row["outcome"] == "dropped") == 0


@pytest.mark.parametrize("fault", ["429-hours", "limit-for-hours"])
def test_pause_longer_than_the_stage_is_patient_ends_in_a_sentence(tmp_path, fault):
    project.make(tmp_path, clips=0, stills=8)
    with project.serving(script=[fault]) as server:
        with pytest.raises(ConnectionError, match="asks to wait for 120 minutes"):
            project.run(url=server.url, concurrency=1)
        assert server.requests == 1
        assert {row["outcome"] for row in project.run(url=server.url).values()} == {"ok"}
        # After its last answer nobody has to wait.
        server.script = [None] * 7 + ["limit-for-hours"]
        assert len(project.run(url=server.url, model="m2", concurrency=1)) == 8


def test_server_that_asks_for_no_pause_is_not_stormed(tmp_path, monkeypatch):
    monkeypatch.setattr("brickreel.captions.pace._FIRST_WAIT_S", 0.2)
    monkeypatch.setattr("brickreel.captions.asking._PATIENCE_S", 2.0)
    project.make(tmp_path, clips=0, stills=4)
    with project.serving(faults=1.0, kinds=("429-now",)) as server:
        with pytest.raises(ConnectionError, match="nothing but 429"):
            project.run(url=server.url)
        assert server.requests < 40


def test_duplicates_that_wait_for_one_answer_use_up_no_limit(tmp_path):
    path = tmp_path / "results/cut/stills/s0.jpg"
    project.make(tmp_path, clips=0, stills=2)
    rows = [project.index_row(f"x{n}", "still", path) for n in range(9)]
    project.make(tmp_path, clips=0, stills=0, rows=[*rows, project.index_row("y", "still", path.with_name("s1.jpg"))])
    with project.serving(latency_s=0.5) as server:
        started = time.monotonic()
        project.run(url=server.url, requests_per_minute=60, concurrency=4)
        assert server.requests == 2
    assert time.monotonic() - started < 5


def test_clips_that_are_answered_already_do_not_make_this_run_look_fast(tmp_path, caplog):
    project.make(tmp_path, clips=0, stills=40)
    with project.serving() as server:
        project.run(url=server.url)
        caplog.clear()
        caplog.set_level(logging.INFO, "brickreel")
        project.run(url=server.url)
    (line,) = [record.getMessage() for record in caplog.records if "40 of 40 clips" in record.getMessage()]
    assert "0/s" in line


def test_one_unusable_answer_is_replaced_by_a_usable_one(tmp_path):
    project.make(tmp_path, clips=0, stills=1)
    with project.serving(script=["banned"]) as server:
        found = project.run(url=server.url)
    assert found["s0", "still"]["outcome"] == "ok"
    assert "video" not in found["s0", "still"]["text"]


def test_newly_banned_word_asks_again_only_for_the_captions_that_have_it(tmp_path):
    project.make(tmp_path, clips=0, stills=8)
    with project.serving() as server:
        first = project.run(url=server.url)
        assert server.requests == 8
        word = first["s0", "still"]["text"].split()[1]
        affected = sum(f" {word} " in row["text"] for row in first.values())
        found = project.run(url=server.url, banned_words=[word], max_failed_share=1.0)
    # This server says the same again: two more requests each, then the clip is dropped.
    assert server.requests == 8 + 2 * affected
    assert sum(row["outcome"] == "dropped" for row in found.values()) == affected


def test_bad_request_is_not_repeated(tmp_path):
    project.make(tmp_path, clips=0, stills=2)
    with project.serving(script=["400"]) as server:
        found = project.run(url=server.url)
    assert sorted(row["outcome"] for row in found.values()) == ["failed", "ok"]
    assert server.requests == 2


@pytest.mark.parametrize(("fault", "words"), [("quota", "You exceeded your current quota"), ("402", "402")])
def test_exhausted_account_stops_at_once_and_keeps_what_is_answered(tmp_path, fault, words):
    project.make(tmp_path, clips=0, stills=12)
    with project.serving(script=[None] * 4 + [fault]) as server:
        with pytest.raises(ValueError, match=words):
            project.run(url=server.url, concurrency=1)
        assert server.requests == 5
        found = project.run(url=server.url)
        assert server.requests == 13
    assert {row["outcome"] for row in found.values()} == {"ok"}


def test_wrong_key_is_one_sentence_that_does_not_repeat_the_key(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(key="another") as server, pytest.raises(ValueError, match="401") as caught:
        project.run(url=server.url)
    assert KEY not in str(caught.value)


def test_missing_key_is_one_sentence_before_any_work(tmp_path, monkeypatch):
    monkeypatch.delenv("BRICKREEL_TEST_KEY")
    with pytest.raises(ValueError, match="BRICKREEL_TEST_KEY"):
        project.run(url="http://127.0.0.1:9/v1")
    assert list(tmp_path.iterdir()) == []


def test_unknown_price_is_one_sentence_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="usd_per_million_in"):
        project.run(url="http://127.0.0.1:9/v1", usd_per_million_in=None)
    assert list(tmp_path.iterdir()) == []


def test_budget_is_never_exceeded_and_a_larger_one_continues(tmp_path):
    project.make(tmp_path, clips=0, stills=30)
    price = {"usd_per_million_in": 10.0, "usd_per_million_out": 100.0}
    with project.serving(latency_s=0.02) as server:
        found = project.run(url=server.url, budget_usd=0.2, max_failed_share=1.0, **price)
        spent = server.tokens_in * 10e-6 + server.tokens_out * 100e-6
        failed = [row for row in found.values() if row["outcome"] == "failed"]
        assert 0.1 < spent <= 0.2
        assert failed
        assert all("budget of 0.20 USD is used up" in row["reason"] for row in failed)
        found = project.run(url=server.url, budget_usd=5.0, **price)
        assert server.requests == 30
    assert {row["outcome"] for row in found.values()} == {"ok"}


def test_dead_endpoint_ends_in_a_sentence(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with pytest.raises(ValueError, match="refused"):
        project.run(url="http://127.0.0.1:9/v1", attempts=2)
    assert not caption.CAPTIONS.exists()


def test_key_is_in_no_file_and_no_log(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    project.make(tmp_path, clips=0, stills=4)
    with project.serving(key=KEY, script=["500", "banned"]) as server:
        project.run(url=server.url)
    with project.serving(key="other") as server, pytest.raises(ValueError, match="401"):
        project.run(url=server.url, model="m2")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"test-model" in written
    assert KEY.encode() not in written
    assert KEY not in caplog.text


def test_estimate_is_printed_and_kept_before_the_first_request(tmp_path, caplog):
    caplog.set_level(logging.INFO, "brickreel")
    project.make(tmp_path, clips=0, stills=2)
    with pytest.raises(ValueError, match="refused"):
        project.run(url="http://127.0.0.1:9/v1", attempts=1)
    assert "2 requests to test-model for 2 clips" in caplog.text
    (line,) = (tmp_path / "logs/caption/estimates.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["usd"] < json.loads(line)["usd_most"]
