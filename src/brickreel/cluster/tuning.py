"""Whether another network setting than NCCL's own choice is worth it: candidates, their score, and a strict verdict.

Pure arithmetic; `sweep` measures. A candidate is adopted only when each of its repeats beats each repeat of the default
by more than the noise: on two quiet cores a single comparison once showed a 19 % gain that three repeats took back.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from brickreel.cluster.fabric import Fabric
from brickreel.cluster.network import Variable

REPEATS = 3
MIN_GAIN = 0.05
NOISE_FACTOR = 2.0
"""The gain must also exceed this many times the spread of the default's own repeats."""
DEFAULT = "default"


class Call(NamedTuple):
    """A collective of the run: its name, size in MiB, and how often a step calls it."""

    name: str
    mib: float
    times: float


class Candidate(NamedTuple):
    """A named set of variables to try."""

    name: str
    variables: dict[str, str]
    reason: str


def candidates(fabric: Fabric, nodes: int, cuda: bool) -> list[Candidate]:
    """What is worth trying here, the default first. Source: NCCL 2.30's manual and NVIDIA's advice on 8 x 400 Gb/s."""
    found = [Candidate(DEFAULT, {}, "what NCCL chooses by itself")]
    if not cuda:
        names = [interface.name for interface in fabric.interfaces if interface.up]
        if nodes == 1:
            names.append("lo")
        return found + [
            Candidate(f"interface {name}", {"GLOO_SOCKET_IFNAME": name}, f"gloo over {name}") for name in names
        ]
    if nodes > 1 and fabric.kind != "ethernet":
        found += [
            Candidate("2 queue pairs", {"NCCL_IB_QPS_PER_CONNECTION": "2"}, "spreads one connection over two routes"),
            Candidate(
                "4 queue pairs, split",
                {"NCCL_IB_QPS_PER_CONNECTION": "4", "NCCL_IB_SPLIT_DATA_ON_QPS": "1"},
                "spreads every message over four routes of a large network",
            ),
            Candidate("rings across rails", {"NCCL_CROSS_NIC": "1"}, "lets a ring change rails between nodes"),
            Candidate("rings within rails", {"NCCL_CROSS_NIC": "0"}, "keeps each ring on its rail"),
        ]
    return [*found, Candidate("no NVLink SHARP", {"NCCL_NVLS_ENABLE": "0"}, "leaves multiprocessors to the model")]


def workload(layers: Sequence[float], replicated: bool) -> list[Call]:
    """The collectives of a step. `layers`: MiB of fp32 weights of each sharded unit.

    Sharded training (FSDP2) gathers each unit's weights twice in bf16 and scatters its gradient once in fp32;
    replicated training reduces gradients in buckets of 25 MiB (DistributedDataParallel's default).
    """
    if replicated:
        return [Call("all_reduce", 25.0, max(1.0, sum(layers) / 25.0))]
    calls: dict[tuple[str, float], float] = {}
    for size in layers:
        for name, mib, count in (("all_gather", size / 2, 2), ("reduce_scatter", size, 1)):
            key = (name, round(mib, 2))
            calls[key] = calls.get(key, 0) + count
    return [Call(name, mib, count) for (name, mib), count in calls.items()]


def score(calls: Sequence[Call], seconds: Sequence[float]) -> float:
    """Seconds of communication per step: each collective's time, weighted by how often a step makes it."""
    return sum(call.times * one for call, one in zip(calls, seconds, strict=True))


class Verdict(NamedTuple):
    """The outcome of a sweep."""

    chosen: str
    gain: float
    """Share of communication time saved against the default's median; negative when none beats it."""
    spread: float
    """Of the default's repeats, relative to their median."""
    reason: str


def choose(scores: Mapping[str, Sequence[float]]) -> Verdict:
    """Judge seconds per step by candidate and repeat. Candidates that failed in any repeat are absent."""
    usual = scores[DEFAULT]
    middle = median(usual)
    spread = (max(usual) - min(usual)) / middle
    others = {name: 1 - median(found) / middle for name, found in scores.items() if name != DEFAULT}
    if not others:
        return Verdict(DEFAULT, 0.0, spread, "no other candidate ran to its end")
    best = max(others, key=lambda name: others[name])
    gain, needed = others[best], max(MIN_GAIN, NOISE_FACTOR * spread)
    if max(scores[best]) < min(usual) and gain > needed:
        return Verdict(best, gain, spread, f"every repeat beats every one of the default, by {gain:.1%} at the median")
    return Verdict(
        DEFAULT,
        gain,
        spread,
        f"the best other one, '{best}', gains {gain:+.1%}; {needed:.1%} is needed in every repeat",
    )


def confirm(verdict: Verdict, usual_s: Sequence[float], chosen_s: Sequence[float]) -> Verdict:
    """Real steps decide: a setting that speeds collectives up may slow computation down. Seconds per step of both."""
    if verdict.chosen == DEFAULT:
        return verdict
    gain = 1 - median(chosen_s) / median(usual_s)
    if gain > 0:
        return verdict._replace(reason=f"{verdict.reason}; {len(chosen_s)} real steps are {gain:.1%} faster")
    return Verdict(
        DEFAULT,
        gain,
        verdict.spread,
        f"'{verdict.chosen}' speeds collectives up, but real steps are {-gain:.1%} slower",
    )


def variables(verdict: Verdict, tried: Sequence[Candidate]) -> list[Variable]:
    """The lines of nccl.env that the verdict asks for."""
    chosen = next(one for one in tried if one.name == verdict.chosen)
    return [Variable(name, value, f"{chosen.reason}: {verdict.reason}") for name, value in chosen.variables.items()]


def key(facts: Mapping[str, Any]) -> str:
    """Names what a result is valid for: node type, number of nodes and ranks, library versions, network, workload."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
