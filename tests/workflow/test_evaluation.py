"""The rules of evaluation.smk, on outputs that are only touched."""

from workflow import test_graph as graph

project, touched, finished = graph.project, graph.touched, graph.finished


def test_a_changed_file_of_prompts_is_sampled_anew_and_nothing_is_trained(finished):
    prompts = finished / "my prompts.txt"
    prompts.write_text("a red tower\n")
    settings = graph.changed(sample={"prompts": prompts.name})
    graph.snakemake(finished, settings, "--touch")
    assert graph.planned(finished, settings) == {}
    prompts.write_text("a red tower\na blue house\n")
    assert set(graph.planned(finished, settings)) == {"all", "sample", "evaluate", "export", "report"}


def test_a_file_of_prompts_that_is_not_there_is_named(project):
    settings = graph.changed(sample={"prompts": "none.txt"}, caption={"captioner": "embedded"})
    done = graph.snakemake(project, settings, check=False)
    assert done.returncode != 0
    assert "none.txt" in done.stderr
    assert not (project / "results/ingest").exists()
    assert graph.snakemake(project, settings, "--dry-run", "--until", "caption").returncode == 0
