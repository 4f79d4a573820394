# Where the time went.


rule report:
    input:
        settings="results/settings/report.json",
        scores=expand("results/evaluate/{run}/scores.json", run=RUNS),
        exports=expand("results/export/{run}/model_index.json", run=RUNS),
    output:
        page=report("results/report/index.html", category="brickreel"),
        summary="results/report/summary.json",
    log:
        "logs/report/all.log",
    conda:
        "../../environment.yml"
    shell:
        "brickreel report --config {input.settings} --log {log}"
