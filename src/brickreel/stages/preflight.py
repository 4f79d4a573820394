"""preflight: prove that the nodes of a run and their network are fit before GPU-hours are spent on them.

Every rank measures, rank 0 compares and judges. Writes results/preflight/{run}/health.json and nccl.env, and a copy
of health.json under logs/, since Snakemake removes what a failed job has written. `train` makes the quick check again
inside its own job, before every attempt on several nodes.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from brickreel import config as configuration
from brickreel import files, tables
from brickreel.cluster import distributed, exits, network, sweep, together, tuning
from brickreel.cluster.checks import Check, at_least, software, verdict
from brickreel.cluster.inspection import Inspection, from_first, worst_per_node
from brickreel.cluster.ranks import Ranks

logger = logging.getLogger("brickreel")

INDEX = Path("results/encode/index.parquet")
MEETING_TIMEOUT_S = 60.0
"""Nodes that do not find each other in this time are a finding, not a reason to wait."""
CONFIRM_S = 300.0
"""For twenty real steps in a fresh process, its start included."""
PATIENCE_S = max(sweep.DEADLINE_S, CONFIRM_S) + 120.0
"""Once they have met, ranks wait for each other: one may wait for its child up to its deadline, and then gather."""
MEMORY_WARN_SHARE = 0.95
"""Of the GPU's memory: above it, fragments of the allocator may not fit."""
NO_MEMORY = ("out of memory", "allocate memory", "ALLOC_FAILED")
"""What torch, its allocator on a CPU, and CUDA's libraries say."""
READING = 2.0
"""Clips that the dataset should give for each one that is trained on: reading is not even."""


def run(config: configuration.Config, run: str) -> None:
    """Check the nodes of this job. Raises ValueError that names bad nodes when they are unfit and `required` is set."""
    config.run(run)
    ranks = distributed.start(MEETING_TIMEOUT_S, PATIENCE_S, Path("logs/preflight") / run)
    try:
        inspection = look(config, run, ranks)
        checks = inspection.everything(_index(), network.read(env_path(run)))
        checks += rehearsal(config, run, ranks)
        variables = network.advise(*inspection.fabrics())
        if config.preflight.tune and not exits.STUCK.is_set():
            variables += tune(config, run, inspection, variables)
        health = judge(checks, inspection.nodes, config.preflight.required) if ranks.rank == 0 else None
        if health:
            write(run, health, variables)
        health = from_first(health, ranks)
    finally:
        distributed.stop()
    if health["verdict"] == "fail" and config.preflight.required:
        raise ValueError(complaint(run, health))


def before_training(config: configuration.Config, run: str, ranks: Ranks) -> None:
    """The quick check inside train's own job, where it has several nodes.

    Raises ValueError that names bad nodes, unless the run's preflight was told to let training go on.
    """
    if not config.train.check_nodes or ranks.world_size == ranks.local_world_size:
        return
    inspection = look(config, run, ranks)
    checks = inspection.everything(_index(), network.read(env_path(run)))
    stage = env_path(run).with_name("health.json")
    required = not stage.is_file() or files.read_json(stage).get("required", True)
    health = from_first(judge(checks, inspection.nodes, required) if ranks.rank == 0 else None, ranks)
    if ranks.rank == 0:
        attempt = f"{os.environ.get('SLURM_JOB_ID', 'local')}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"
        files.write_json(Path("logs/preflight") / run / f"attempt-{attempt}.json", health)
        logger.info("quick check of %s: %s", ", ".join(health["nodes"]), health["verdict"])
    if health["verdict"] == "fail" and required:
        raise ValueError(complaint(run, health))


def env_path(run: str) -> Path:
    """Where the network variables of a run stand."""
    return Path("results/preflight") / run / "nccl.env"


def look(config: configuration.Config, run: str, ranks: Ranks) -> Inspection:
    """Begin to look at the nodes."""
    same = {"the plan": _plan_path(run), "the settings of the launcher": Path("slurm/site.env")}
    device = "cuda" if _cuda() else "cpu"
    plan = files.read_json(_plan_path(run)) if _plan_path(run).is_file() else {}
    checkpoints = (Path("results/train") / run / "checkpoints", plan.get("disk_gib", {}).get("checkpoints"))
    return Inspection(ranks, device, config.preflight, Path("results/preflight") / run, same, checkpoints)


def _index() -> Any:
    return tables.read("encode_index", INDEX, columns=["file"]) if INDEX.exists() else None


def _plan_path(run: str) -> Path:
    return Path("results/plan") / run / "plan.json"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def rehearsal(config: configuration.Config, run: str, ranks: Ranks) -> list[Check]:
    """The largest micro-batch of the plan, forward and backward, on all ranks; equal shares; reading that keeps up.

    On rank 0 the checks; a collective call of all ranks.
    """
    # Agreed on before the first collective of a backend: in it the others would wait for a rank that cannot begin.
    lacks = sweep.gather((ranks.node, _no_plan(run) or _no_model(config)), ranks)
    if any(reason for _, reason in lacks):
        return worst_per_node(_judge_lacks(lacks)) if ranks.rank == 0 else []
    found = together.run(lambda: _try(config, run, ranks), lambda outcome: bool(outcome[1]), ranks)
    if ranks.rank:
        return []
    told = [(rank, lacks[rank][0], *outcome) for rank, outcome in enumerate(found) if outcome]
    return worst_per_node(_judge_rehearsal(told) + _judge_reading(told))


def _try(config: configuration.Config, run: str, ranks: Ranks) -> tuple["Trial", str]:
    """What this rank found out, or its problem."""
    trial, problem = Trial(), ""
    try:
        trial = _rehearse(config, run, ranks)
    except (ValueError, OSError) as error:
        problem = str(error)
    except Exception as error:  # torch's out-of-memory error is one
        problem = (str(error) or type(error).__name__).splitlines()[0]
        if not isinstance(error, RuntimeError | MemoryError):
            problem = f"{type(error).__name__}: {problem}"
        if isinstance(error, MemoryError) or any(words in problem for words in NO_MEMORY):
            problem += ": make the micro-batch smaller, or end what uses its memory"
    if problem:
        logger.error("rank %d on %s: %s", ranks.rank, ranks.node, problem)
    return trial, problem


def _no_plan(run: str) -> str:
    return "" if _plan_path(run).is_file() else "there is no plan yet: run plan first"


def _no_model(config: configuration.Config) -> str:
    """Why this rank cannot make the model; empty when it can."""
    try:
        _empty_model(config)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _empty_model(config: configuration.Config) -> Any:
    """The transformer without memory for its weights. Raises ValueError or OSError where there is no base."""
    import torch

    from brickreel.models import load

    with torch.device("meta"):
        return load.empty_transformer(load.locate("transformer", **config.base.transformer.model_dump()))


def _judge_lacks(found: list[tuple[str, str]]) -> list[Check]:
    """What all lack is not there yet; what some lack is their node's fault."""
    lacking = [(rank, node, reason) for rank, (node, reason) in enumerate(found) if reason]
    if len(lacking) == len(found):
        return [Check("largest micro-batch", "all", "not measured", reason=lacking[0][2])]
    return [
        Check("largest micro-batch", node, "fail", reason=f"rank {rank} on {node}, unlike others: {reason}")
        for rank, node, reason in lacking
    ]


class Trial(NamedTuple):
    """What a rank found out about its part of a step."""

    peak_gib: float = 0.0
    total_gib: float = 0.0
    """Of the GPU's memory."""
    share: int = 0
    """Micro-batches of this rank per step."""
    needs: float = 0.0
    reads: float | None = None
    """Clips per second that training takes, and that the disk gives."""
    damaged: str = ""


def _rehearse(config: configuration.Config, run: str, ranks: Ranks) -> Trial:
    import torch

    from brickreel.training import rehearsal as training
    from brickreel.training.buckets import BucketPlan
    from brickreel.training.encoding import choose_device
    from brickreel.training.order import deal

    plan = BucketPlan.from_json(files.read_json(_plan_path(run))["buckets"])
    settings, device = config.run(run), choose_device("auto", ranks.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a thread's device is GPU 0 until it says otherwise
    backend = training.build(config.base, settings, ranks, device)
    found = training.rehearse(backend, settings, plan, device)
    share = len(deal(0, settings.micro_batches, ranks.rank, ranks.world_size))
    logger.info("largest micro-batch %s: %.3g s per step", found.bucket, found.seconds[-1])
    needs, reads, damaged = found.clips / max(found.seconds), None, ""
    try:
        # All ranks at once, each its own samples.
        reads = training.reading(INDEX, config.train.loader_threads, ranks.rank) if INDEX.exists() else None
    except (ValueError, OSError) as error:
        damaged = str(error)
    return Trial(found.peak_gib or 0.0, found.total_gib or 0.0, share, needs, reads, damaged)


def _judge_reading(found: list[tuple[int, str, Trial, str]]) -> list[Check]:
    """The dataset has to give every rank twice the clips that its steps take."""
    checks = []
    for _, node, trial, problem in found:
        if trial.damaged:
            checks.append(Check("dataset reading", node, "fail", reason=trial.damaged))
        elif trial.reads is not None and not problem:
            need = READING * trial.needs
            reason = (
                f"a rank on {node} reads {trial.reads:.3g} clips per second and its steps take up to {trial.needs:.3g}:"
                " training would wait for data; copy the dataset to a faster file system, or raise `loader_threads`"
            )
            checks.append(at_least("dataset reading", node, trial.reads, "clips/s per rank", need, trial.needs, reason))
    return checks or [Check("dataset reading", "all", "not measured", reason="no latents were read")]


def _judge_rehearsal(found: list[tuple[int, str, Trial, str]]) -> list[Check]:
    """`found`: rank, node, trial and problem of each rank that has ended."""
    checks = []
    for rank, node, (peak, total, *_), problem in found:
        if problem:
            checks.append(Check("largest micro-batch", node, "fail", reason=f"rank {rank} on {node}: {problem}"))
        elif total and peak > MEMORY_WARN_SHARE * total:
            reason = f"rank {rank} on {node} used {peak:.1f} of {total:.1f} GiB: a little more and it fails"
            checks.append(Check("largest micro-batch", node, "warn", peak, "GiB", reason=reason))
    if not checks:
        most = max(trial.peak_gib for *_, trial, _ in found)
        told = (most, "GiB", "fits on every rank") if most else (None, "", "", "ran on every rank; memory not measured")
        checks = [Check("largest micro-batch", "all", "pass", *told)]
    shares = {trial.share for *_, trial, problem in found if not problem}
    if not shares:
        return [*checks, Check("equal shares", "all", "not measured", reason="no rank has taken a step")]
    most = max(shares)
    if len(shares) == 1:
        return [*checks, Check("equal shares", "all", "pass", most, "micro-batches", "equal on all ranks")]
    reason = f"ranks have {min(shares)} to {most} micro-batches per step: they would wait for each other for ever"
    return [*checks, Check("equal shares", "all", "fail", most, "micro-batches", "equal on all ranks", reason)]


def tune(
    config: configuration.Config, run: str, inspection: Inspection, advised: list[network.Variable]
) -> list[network.Variable]:
    """What a sweep of this kind of cluster has found, now or earlier. A collective call of all ranks."""
    ranks = inspection.ranks
    if ranks.world_size == 1:
        return []
    if lacks := [reason for reason in sweep.gather(_no_model(config), ranks) if reason]:
        logger.warning("network settings are not measured: %s", lacks[0])
        return []
    layers = _layers(config)
    calls = tuning.workload(layers, replicated=inspection.device == "cpu")
    facts = software.facts()
    kind = {
        "node": [facts.get("cuda"), facts["torch"], facts.get("nccl"), len(inspection.fabric.gpus)],
        "nodes": len(inspection.leaders),
        "ranks": ranks.world_size,
        "network": [inspection.fabric.kind, [port.name for port in inspection.fabric.rails], inspection.way],
        "calls": [list(call) for call in calls],
    }
    path = Path("logs/preflight/tuning") / f"{tuning.key(kind)}.json"
    tried = tuning.candidates(inspection.fabric, len(inspection.leaders), inspection.device == "cuda")
    if from_first(path.is_file(), ranks):
        return tuning.variables(tuning.Verdict(**files.read_json(path)["verdict"]), tried)
    base = {variable.name: variable.value for variable in advised}
    scores, failed = sweep.measure(tried, calls, ranks, inspection.device, base)
    if tuning.DEFAULT not in scores:
        logger.warning("the sweep found nothing: %s", failed.get(tuning.DEFAULT, "the default did not run"))
        return []
    found = tuning.choose(scores)
    if found.chosen != tuning.DEFAULT:
        try:
            found = _confirm(config, run, found, tried, base, ranks)
        except ConnectionError as error:
            # Not a verdict, and not to be kept as one: the next preflight tries again.
            logger.warning("network settings: %s seemed better, but %s", found.chosen, error)
            return []
    if ranks.rank == 0:
        files.write_json(path, {"kind": kind, "scores": scores, "failed": failed, "verdict": found._asdict()})
        logger.info("network settings: %s (%s)", found.chosen, found.reason)
    return tuning.variables(found, tried)


def _layers(config: configuration.Config) -> list[float]:
    """MiB of fp32 weights of each block, and of the rest."""
    sizes: dict[str, float] = {}
    for name, parameter in _empty_model(config).named_parameters():
        words = name.split(".")
        unit = ".".join(words[:2]) if words[1:2] and words[1].isdecimal() else "rest"
        sizes[unit] = sizes.get(unit, 0.0) + parameter.numel() * 4 / 2**20
    return list(sizes.values())


def _confirm(
    config: configuration.Config,
    run: str,
    found: tuning.Verdict,
    tried: list[tuning.Candidate],
    base: dict[str, str],
    ranks: Ranks,
) -> tuning.Verdict:
    """Twenty real steps with the default and with the winner, in fresh processes.

    Raises ConnectionError on all ranks when the steps could not be taken.
    """
    # Snakemake has written this file already; who called the stage by hand has not.
    settings = configuration.write_settings(config, "preflight", run) if ranks.rank == 0 else None
    words = [sys.executable, "-m", "brickreel.training.rehearsal", str(from_first(settings, ranks)), run]
    chosen = next(one.variables for one in tried if one.name == found.chosen)
    answers = []
    for place, variables in enumerate(({}, chosen)):
        port = sweep.FIRST_PORT + sweep.PORTS + place
        answer, problem = sweep.everywhere(words, {**base, **variables}, ranks, port, CONFIRM_S)
        if problem:
            raise ConnectionError(f"real steps failed: {problem}")
        answers.append(answer["seconds"])
    return tuning.confirm(found, *answers)


def judge(checks: list[Check], nodes: list[str], required: bool) -> dict[str, Any]:
    """The content of health.json."""
    return {
        "time_s": time.time(),
        "verdict": verdict(checks),
        "exclude": sorted({check.node for check in checks if check.result == "fail"} - {"all"}),
        "required": required,
        "simulated": not _cuda(),
        "nodes": list(dict.fromkeys(nodes)),
        "checks": [check.to_json() for check in checks],
    }


def write(run: str, health: dict[str, Any], variables: list[network.Variable]) -> None:
    """Write health.json and nccl.env and say what was found."""
    files.write_json(env_path(run).with_name("health.json"), health)
    files.write_json(Path("logs/preflight") / run / "health.json", health)
    remarks = ["measured without GPUs"] if health["simulated"] else []
    files.write_text(env_path(run), network.text(variables, remarks))
    for check in health["checks"]:
        value = check["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
        words = (check["result"], check["name"], check["node"], shown, check["unit"], check["reason"])
        logger.info("%-12s %-28s %-10s %s %s %s", *words)
    if health["exclude"]:
        logger.info("unfit nodes: --exclude=%s", ",".join(health["exclude"]))


def complaint(run: str, health: dict[str, Any]) -> str:
    """One sentence with the reasons of a failed preflight and what to do."""
    reasons = list(dict.fromkeys(check["reason"] for check in health["checks"] if check["result"] == "fail"))
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    leave_out = f"; leave the nodes out with --exclude={','.join(health['exclude'])}" if health["exclude"] else ""
    return (
        f"preflight of '{run}' failed: {'; '.join(reasons[:3])}{more}{leave_out}. All checks: logs/preflight/{run}/."
        " To train all the same set `preflight.required: false`"
    )
