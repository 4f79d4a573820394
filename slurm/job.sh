# Sourced first by every batch script here, with the script's own arguments, and by the launcher's jobs: the site's
# environment, and what to do at the end. A job whose stage failed goes back into the queue at most
# BRICKREEL_MAX_REQUEUES times, unless it was cancelled or left a verdict that a new attempt would only repeat it.

job_id=$SLURM_JOB_ID
unset SLURM_CLUSTERS # it was for whoever submitted: this job's own cluster is the one it runs on
restarts=${SLURM_RESTART_COUNT:-0}
cancelled=
trap 'cancelled=yes' TERM # bash runs it when the step in front has ended

# What the caller's environment says wins over site.env, as it does for the launcher.
given=$(export -p | grep '^declare -x BRICKREEL_' || true)
set -a
. slurm/site.env
set +a
eval "$given"

# The Python of this job, as words: a container's command line, the launcher's own interpreter, or the environment here.
default_python=${default_python:-python}
[ "$default_python" = python ] && [ -x .venv/bin/python ] && default_python=.venv/bin/python
eval "python=(${BRICKREEL_PYTHON:-$default_python})"

# Arguments that are left are configuration files.
configs=()
for file in "$@"; do configs+=(--config "$file"); done

export BRICKREEL_VERDICT="$PWD/logs/verdicts/$job_id-$restarts"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun no longer takes it over from sbatch by itself
export PYTHONUNBUFFERED=1

# What preflight found out about the network of a run's nodes.
use_network_of() {
    if [ -f "results/preflight/$1/nccl.env" ]; then
        set -a
        . "results/preflight/$1/nccl.env"
        set +a
    fi
}

# finish STATUS: the last command of a script. Put a failed job back into the queue, or end with its status.
finish() {
    if [ "$1" -eq 0 ]; then exit 0; fi
    if [ -s "$BRICKREEL_VERDICT" ]; then
        cat "$BRICKREEL_VERDICT" >&2
        exit "$1"
    fi
    if [ -z "$cancelled" ] && [ "$restarts" -lt "${BRICKREEL_MAX_REQUEUES:-10}" ]; then
        echo "attempt $restarts ended with status $1: back into the queue" >&2
        scontrol requeue "$job_id" && sleep 60 # Slurm ends the script while it sleeps
    fi
    exit "$1"
}
