"""Captions from servers that a Slurm job starts: one replica per rank, shards spread over them, all gone at the end."""

import sys

from brickreel import config, files, tables
from captions import project
from slurm.site import ROOT, finish, wait

PROGRAM = (sys.executable, str(ROOT / "tests/captions/server.py"), "--port", "{port}")


def test_servers_on_the_nodes_of_a_job_describe_all_shards_and_end_with_it(site):
    project.make(site.folder, clips=0, stills=24)
    log = site.folder / "paid-{port}.jsonl"
    caption = {"captioner": "openai", "model": "m", "server": {"command": (*PROGRAM, "--log", str(log))}}
    # The manifest's paths are absolute here; the clips lie on what stands for the shared file system.
    settings = config.load({"caption": caption, "project": {"shards": 6}})
    files.write_json(site.folder / "config.json", settings.model_dump(mode="json"))
    launcher = site.start(
        *(sys.executable, "-m", "brickreel", "launch", "caption", "--shard", "all/6", "--config", "config.json"),
        *("--executor", "slurm", "--nodes", "2", "--tasks-per-node", "1", "--partition", "gpu", "--gres", "gpu:1"),
        *("--mem-mb", "2000", "--runtime", "10", "--log", "logs/caption/all.log"),
    )
    finish(launcher)
    rows = tables.read("captions", site.folder / "results/caption/captions.parquet").to_pylist()
    assert len(rows) == 24
    assert {row["outcome"] for row in rows} == {"ok"}
    paid = [files.read_json_lines(path) for path in site.folder.glob("paid-*.jsonl")]
    assert len(paid) == 2
    assert all(paid)
    assert sum(map(len, paid)) == 24
    wait("an empty queue", 60, lambda: not site.cluster.ask("squeue", "-h"))
