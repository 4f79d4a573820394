import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brickreel import config, files
from brickreel.captions import server
from brickreel.cluster.ranks import Ranks
from captions import project

PROGRAM = (sys.executable, str(Path(__file__).with_name("server.py")), "--port", "{port}")


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def write_settings(shards=1, command=PROGRAM, **own):
    caption = {"captioner": "openai", "model": "test-model", "server": {"command": command, **own}}
    settings = config.load({"caption": caption, "project": {"shards": shards}})
    files.write_json("settings.json", settings.model_dump(mode="json"))
    return settings


def brickreel(*words):
    return [sys.executable, "-m", "brickreel", *words, "--config", "settings.json"]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_server_is_started_awaited_asked_and_ended(tmp_path):
    project.make(tmp_path, clips=1, stills=3)
    write_settings(command=(*PROGRAM, "--unhealthy-s", "0.5", "--log", str(tmp_path / "paid.jsonl")))
    done = subprocess.run(brickreel("caption"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the server is healthy" in done.stderr
    found = project.captions()
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert {row["usd"] for row in found.values()} == {0.0}
    assert len(files.read_json_lines(tmp_path / "paid.jsonl")) == 4
    port = int(done.stderr.split("on port ")[1].split(",")[0])
    with pytest.raises(OSError, match="refused"):
        import socket

        socket.create_connection(("127.0.0.1", port))


def test_server_of_ones_own_is_not_asked_through_a_proxy(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    project.make(tmp_path, clips=0, stills=2)
    write_settings()
    done = subprocess.run(brickreel("caption"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {row["outcome"] for row in project.captions().values()} == {"ok"}


def test_server_sees_no_key_of_others_and_is_asked_with_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-endpoint")
    project.make(tmp_path, clips=0, stills=2)
    # The test's server refuses requests without the key in its environment, as vLLM does.
    write_settings(command=("sh", "-c", 'env > seen.txt; exec "$@"', "sh", *PROGRAM))
    done = subprocess.run(brickreel("caption"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = Path("seen.txt").read_text()
    assert "sk-of-another-endpoint" not in seen
    assert "OPENAI_API_KEY" not in seen
    key = seen.split("VLLM_API_KEY=")[1].split()[0]
    assert len(key) == 32
    assert key not in done.stderr


def test_health_of_another_server_on_the_port_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_LOOK_AGAIN_S", 0.05)
    settings = write_settings(command=(sys.executable, "-c", "import time; time.sleep(60)", "{port}"), start_s=5)
    with project.serving(key="anothers") as other:
        port = int(other.url.rsplit(":", 1)[1].split("/")[0])
        monkeypatch.setattr(server, "_free_port", lambda: port)
        with pytest.raises(ValueError, match=f"port {port} is another server's, .*VLLM_API_KEY"):
            server.running(settings.caption.server, "m")
    assert not server._running


def test_health_of_another_server_is_not_taken_for_that_of_a_program_that_has_ended(tmp_path, monkeypatch):
    settings = write_settings(command=(sys.executable, "-c", "raise SystemExit('{port} is taken')"))
    monkeypatch.setattr(server.Server, "_healthy", lambda self: self.process.wait() is not None)
    with pytest.raises(ValueError, match=r"ended with status 1.*is taken"):
        server.running(settings.caption.server, "m")


def test_server_ends_with_a_stage_that_was_killed(tmp_path):
    project.make(tmp_path, clips=0, stills=1)
    write_settings(command=(*PROGRAM, "--unhealthy-s", "600"))
    process = subprocess.Popen(brickreel("caption"), stderr=subprocess.DEVNULL)
    (child,) = wait(lambda: children(process.pid))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait(lambda: not alive(child))


def test_server_that_ends_at_once_is_told_with_its_last_words(tmp_path):
    settings = write_settings(command=(sys.executable, "-c", "raise SystemExit('no GPU for {port}')"))
    with pytest.raises(ValueError, match=r"ended with status 1; .* ends with: no GPU for \d+"):
        server.running(settings.caption.server, "m")


def test_server_that_is_never_healthy_is_ended_after_its_time(tmp_path):
    settings = write_settings(command=(*PROGRAM, "--unhealthy-s", "600"), start_s=0.6)
    with pytest.raises(ValueError, match=r"not healthy after 0\.6 s"):
        server.running(settings.caption.server, "m")
    assert not server._running


def test_program_that_is_not_there_is_one_sentence(tmp_path):
    settings = write_settings(command=("no-such-program", "{port}"))
    with pytest.raises(ValueError, match=r"caption\.server\.command cannot be started.*no-such-program"):
        server.running(settings.caption.server, "m")


def test_command_without_the_port_is_refused():
    with pytest.raises(ValueError, match="must pass the port on"):
        config.load({"caption": {"server": {"command": ["vllm", "serve"]}}})


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ({"base_url": "https://me:pw-of-mine@host/v1"}, "base_url", "pw-of-mine"),
        ({"base_url": "https://host/v1?key=pw-of-mine"}, "base_url", "pw-of-mine"),
        ({"server": {"command": ["serve", "{port}", "--api-key", "pw-of-mine"]}}, "server.command", "pw-of-mine"),
        ({"server": {"command": ["serve", "--api_key=pw-of-mine"]}}, "server.command", "pw-of-mine"),
        ({"server": {"command": ["bash", "-c", "x {port} --api-key pw-of-mine"]}}, "server.command", "pw-of-mine"),
        ({"server": {"command": ["sh", "-c", "exec x --port {port} --api-key=pw"]}}, "server.command", "=pw"),
        ({"server": {"command": ["env", "K=sk-proj-0123456789abcdef", "{port}"]}}, "server.command", "sk-proj"),
        ({"api_key_env": "AKIAIOSFODNN7EXAMPLE"}, "api_key_env", "AKIA"),
    ],
)
def test_secrets_in_settings_are_refused_in_one_sentence_that_does_not_repeat_them(section, field, value):
    with pytest.raises(ValueError, match=f"caption.{field}`: must ") as caught:
        config.load({"caption": section})
    assert value not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_query_and_lower_case_are_refused_in_their_own_words():
    with pytest.raises(ValueError, match=r"caption\.base_url`: must have no query"):
        config.load({"caption": {"base_url": "https://host/v1?version=2"}})
    with pytest.raises(ValueError, match="in upper case"):
        config.load({"caption": {"api_key_env": "my_key"}})


def test_server_is_not_started_where_nothing_is_left_to_ask(tmp_path):
    project.make(tmp_path, clips=0, stills=2)
    write_settings()
    done = subprocess.run(brickreel("caption"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(brickreel("caption"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "caption: started" not in done.stderr
    assert {row["outcome"] for row in project.captions().values()} == {"ok"}


def test_options_that_are_no_secrets_are_taken():
    command = ["vllm", "serve", "{model}", "--port", "{port}", "--max-num-batched-tokens", "8192"]
    command += ["--tokenizer", "sk-is-the-slovak-language"]
    config.load({"caption": {"server": {"command": command}, "api_key_env": "MY_GATEWAYS_API_KEY_2"}})
    for words in ('exec serve --port {port} --api-key "$VLLM_API_KEY"', "serve --port {port} --api-key-file key"):
        config.load({"caption": {"server": {"command": ["bash", "-c", words]}}})


def test_replicas_of_a_node_share_its_gpus():
    def devices(visible, rank, of):
        me = Ranks(rank, of, rank, of)
        return server._environment({"CUDA_VISIBLE_DEVICES": visible}, me)["CUDA_VISIBLE_DEVICES"]

    assert [devices("0,1,2,3", rank, 2) for rank in range(2)] == ["0,1", "2,3"]
    assert devices("3", 0, 1) == "3"
    assert devices("0", 1, 2) == "0", "fewer GPUs than ranks are left as they are"


def test_replicas_share_all_gpus_where_nothing_says_which(monkeypatch):
    monkeypatch.setattr("pynvml.nvmlInit", lambda: None)
    monkeypatch.setattr("pynvml.nvmlDeviceGetCount", lambda: 4)
    found = [server._environment({}, Ranks(rank, 2, rank, 2)) for rank in range(2)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["0,1", "2,3"]


def test_shards_are_spread_over_the_replicas_of_a_launched_job(tmp_path):
    project.make(tmp_path, clips=0, stills=24)
    write_settings(shards=4, command=(*PROGRAM, "--log", str(tmp_path / "paid-{port}.jsonl")))
    command = brickreel("launch", "caption", "--shard", "all/4", "--tasks-per-node", "2", "--log", "logs/all.log")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {row["outcome"] for row in project.captions().values()} == {"ok"}
    assert [path.name for path in sorted(Path("results/caption/captions.parquet").iterdir())] == [
        f"{index:02d}.parquet" for index in range(4)
    ]
    paid = [files.read_json_lines(path) for path in tmp_path.glob("paid-*.jsonl")]
    assert len(paid) == 2
    assert all(paid)
    assert sum(map(len, paid)) == 24
