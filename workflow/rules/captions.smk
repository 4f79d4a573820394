# Clips to text. With a server of its own (caption.server) the stage is one launched job instead of one job per shard:
# every rank starts a replica of the server and describes its share of the shards.
CAPTION_SHARDS = SHARDS if SERVED else ["{shard}"]
CAPTION_COMMAND = (
    "exec brickreel launch caption --shard all/"
    if SERVED
    else "brickreel caption --shard {wildcards.shard}/"
)

if SERVED:

    localrules:
        caption,


rule caption:
    input:
        settings="results/settings/caption.json",
        index=expand("results/cut/index.parquet/{shard}.parquet", shard=SHARDS),
        corrections=str(CONFIG.caption.corrections or "") or [],
    output:
        expand("results/caption/captions.parquet/{shard}.parquet", shard=CAPTION_SHARDS),
    log:
        "logs/caption/all.log" if SERVED else "logs/caption/{shard}.log",
    # A launched job is put back into the queue by its own batch script; None is what the profile says.
    retries: 0 if SERVED else None
    conda:
        "../../environment.yml"
    resources:
        **(LAUNCH_RESOURCES if SERVED else {}),
    shell:
        CAPTION_COMMAND
        + f"{len(SHARDS)}"
        + " --config {input.settings} --log {log}"
        + (LAUNCH_OPTIONS if SERVED else "")
