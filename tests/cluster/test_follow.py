from brickreel.cluster.follow import Follower


def test_whole_lines_of_rank_0_are_passed_on_once(tmp_path, capsys):
    ranks = [tmp_path / "0", tmp_path / "1"]
    follower = Follower(ranks, tmp_path / "log")
    follower.pump()  # nothing is there yet
    ranks[0].write_bytes(b"one\ntw")
    ranks[1].write_bytes(b"other\n")
    follower.pump()
    ranks[0].write_bytes(b"one\ntwo \xc3\xa9\n")
    follower.pump()
    follower.pump()
    assert capsys.readouterr().err == "one\ntwo é\n"
    assert (tmp_path / "log").read_text() == "one\ntwo é\n"


def test_a_job_that_is_found_again_is_followed_from_here_on(tmp_path, capsys):
    rank = tmp_path / "0"
    rank.write_text("before\n")
    follower = Follower([rank], None, skip=True)
    with rank.open("a") as stream:
        stream.write("after\n")
    follower.pump()
    assert capsys.readouterr().err == "after\n"


def test_last_words_name_every_rank_with_its_file(tmp_path):
    ranks = [tmp_path / "0", tmp_path / "1", tmp_path / "2"]
    ranks[0].write_text("\n".join(map(str, range(100))))
    ranks[1].write_text("boom")
    words = Follower(ranks, None).last_words()
    assert f"rank 1, {ranks[1]}\nboom" in words
    assert "99" in words
    assert "\n50\n" not in words
    assert "rank 2" not in words
