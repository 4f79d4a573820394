# Films to clips.
rule ingest:
    input:
        settings="results/settings/ingest.json",
        sources=CONFIG.ingest.sources,
    output:
        "results/ingest/sources.parquet",
    log:
        "logs/ingest/all.log",
    conda:
        "../../environment.yml"
    params:
        films=films_here,
    shell:
        "brickreel ingest --config {input.settings} --log {log}"


rule analyze:
    input:
        settings="results/settings/analyze.json",
        sources="results/ingest/sources.parquet",
    output:
        "results/analyze/{shard}.parquet",
    log:
        "logs/analyze/{shard}.log",
    conda:
        "../../environment.yml"
    params:
        shards=len(SHARDS),
    shell:
        "brickreel analyze --shard {wildcards.shard}/{params.shards} --config {input.settings} --log {log}"


rule curate:
    input:
        settings="results/settings/curate.json",
        sources="results/ingest/sources.parquet",
        signals=expand("results/analyze/{shard}.parquet", shard=SHARDS),
        withdrawn=WITHDRAWN,
    output:
        clips="results/curate/clips.parquet",
        audit="results/curate/audit.html",
    log:
        "logs/curate/all.log",
    conda:
        "../../environment.yml"
    shell:
        "brickreel curate --config {input.settings} --log {log}"


rule cut:
    input:
        settings="results/settings/cut.json",
        clips=CONFIG.cut.adopt or "results/curate/clips.parquet",
        withdrawn=WITHDRAWN if CONFIG.cut.adopt else [],
    output:
        "results/cut/index.parquet/{shard}.parquet",
    log:
        "logs/cut/{shard}.log",
    conda:
        "../../environment.yml"
    params:
        shards=len(SHARDS),
    shell:
        "brickreel cut --shard {wildcards.shard}/{params.shards} --config {input.settings} --log {log}"
