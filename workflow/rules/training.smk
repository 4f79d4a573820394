# Clips and text to a fine-tuned model. preflight and train start their own multi-node job, through the launcher.


localrules:
    preflight,
    train,


rule encode:
    input:
        settings="results/settings/encode.json",
        index=expand("results/cut/index.parquet/{shard}.parquet", shard=SHARDS),
        captions=expand(
            "results/caption/captions.parquet/{shard}.parquet", shard=SHARDS
        ),
    output:
        "results/encode/index.parquet/{shard}.parquet",
    log:
        "logs/encode/{shard}.log",
    conda:
        "../../environment.yml"
    threads: 8
    params:
        shards=len(SHARDS),
    shell:
        "brickreel encode --shard {wildcards.shard}/{params.shards} --config {input.settings} --log {log}"


rule plan:
    input:
        settings="results/settings/plan-{run}.json",
        index=expand("results/encode/index.parquet/{shard}.parquet", shard=SHARDS),
    output:
        "results/plan/{run}/plan.json",
    log:
        "logs/plan/{run}.log",
    conda:
        "../../environment.yml"
    shell:
        "brickreel plan --run {wildcards.run} --config {input.settings} --log {log}"


rule preflight:
    input:
        settings="results/settings/preflight-{run}.json",
        plan="results/plan/{run}/plan.json",
    output:
        health="results/preflight/{run}/health.json",
        env="results/preflight/{run}/nccl.env",
    log:
        "logs/preflight/{run}.log",
    retries: 0  # its own batch script puts it back into the queue
    conda:
        "../../environment.yml"
    resources:
        **LAUNCH_RESOURCES,
    shell:
        "exec brickreel launch preflight --run {wildcards.run} --config {input.settings} --log {log}"
        + LAUNCH_OPTIONS


rule train:
    input:
        settings="results/settings/train-{run}.json",
        plan="results/plan/{run}/plan.json",
        health="results/preflight/{run}/health.json",
    output:
        # Not the weights: Snakemake would delete them before it starts the stage, which keeps those of a finished run.
        "results/train/{run}/finished.json",
    log:
        "logs/train/{run}.log",
    retries: 0  # its own batch script puts it back into the queue
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        **LAUNCH_RESOURCES,
    shell:
        "exec brickreel launch train --run {wildcards.run} --config {input.settings} --log {log}"
        + LAUNCH_OPTIONS
