# What the model makes now, and what it made before.

# Prompts may stand in a file of their own, which changes without the settings. One that is not there holds nobody up who
# only makes a dataset.
PROMPTS = [
    str(path)
    for path in [CONFIG.sample.prompts]
    if isinstance(path, Path) and path.is_file()
]


rule sample:
    input:
        settings="results/settings/sample-{run}.json",
        finished="results/train/{run}/finished.json",
        prompts=PROMPTS,
    output:
        "results/sample/{run}/sheet.jpg",
    log:
        "logs/sample/{run}.log",
    conda:
        "../../environment.yml"
    threads: 8
    shell:
        "brickreel sample --run {wildcards.run} --config {input.settings} --log {log}"


rule evaluate:
    input:
        settings="results/settings/evaluate-{run}.json",
        sheet="results/sample/{run}/sheet.jpg",
    output:
        "results/evaluate/{run}/scores.json",
    log:
        "logs/evaluate/{run}.log",
    conda:
        "../../environment.yml"
    threads: 8
    shell:
        "brickreel evaluate --run {wildcards.run} --config {input.settings} --log {log}"


rule export:
    input:
        settings="results/settings/export-{run}.json",
        scores="results/evaluate/{run}/scores.json",
    output:
        "results/export/{run}/model_index.json",
    log:
        "logs/export/{run}.log",
    conda:
        "../../environment.yml"
    shell:
        "brickreel export --run {wildcards.run} --config {input.settings} --log {log}"
