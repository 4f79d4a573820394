# From a folder of films to a fine-tuned model and its report. Read it as a table of contents; one file per part.
#   snakemake --cores 4                      on this machine
#   snakemake --profile slurm                on a Slurm cluster
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.0")


configfile: f"{workflow.basedir}/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/films.smk"
include: "workflow/rules/captions.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/report.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        "results/report/index.html",
        expand("results/export/{run}/model_index.json", run=RUNS),


onstart:
    try:
        hold()
    except BlockingIOError as error:
        raise WorkflowError(str(error)) from None
    # Before captions are paid for and jobs wait in a queue.
    if not workflow.touch:
        check_what_is_needed({job.rule.name for job in workflow.dag.needrun_jobs()})


# A failed run has a report too: of how far it came, and where the time went. What went wrong is said last.
onerror:
    try:
        shell("brickreel report --config results/settings/report.json")
    finally:
        print(last_words(log), file=sys.stderr)
