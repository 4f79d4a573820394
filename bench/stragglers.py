"""How often a slow rank is found, and how often a clean run is accused: 32 ranks, 2,000 steps, 2 % jitter, rare spikes.

The windowed rule of the report against two simpler ones: the mean over three standard deviations, and one median over
the whole run. Limits: a rank slower by 3 % found in 90 % of 300 runs, no false alarm in 300 clean ones.
"""

import numpy as np

from _limits import at_least, at_most, judge
from brickreel.telemetry import stragglers

RANKS, STEPS, RUNS, SLOW = 32, 2000, 300, 13
CASES = {
    "clean": (1.0, 1.0),
    "3 % slower": (1.03, 1.0),
    "5 % slower": (1.05, 1.0),
    "30 % in a tenth, in a row": (1.3, -0.1),
    "30 % in a tenth, at random": (1.3, 0.1),
}


def main() -> None:
    """Simulate all cases, print, and write results/bench/stragglers.json."""
    result = {}
    print(f"{'case':28s}" + "".join(f"{name:>28s}" for name in RULES))
    for name, (factor, share) in CASES.items():
        found = dict.fromkeys(RULES, 0)
        wrong = dict.fromkeys(RULES, 0)
        for seed in range(RUNS):
            local = simulate(seed, factor, share)
            for rule, check in RULES.items():
                accused = check(local)
                found[rule] += SLOW in accused
                wrong[rule] += bool(accused - {SLOW} if factor > 1 else accused)
        result[name] = {
            rule: {
                "found_pct": 100 * found[rule] / RUNS if factor > 1 else None,
                "false_alarm_pct": 100 * wrong[rule] / RUNS,
            }
            for rule in RULES
        }
        shown = [f"{100 * found[rule] / RUNS:.1f} % found, {100 * wrong[rule] / RUNS:.1f} % wrong" for rule in RULES]
        print(f"{name:28s}" + "".join(f"{text:>28s}" for text in shown))
    limits = [
        at_least("3 % slower: found_pct", result["3 % slower"]["windowed"]["found_pct"], 90),
        at_most("clean: false_alarm_pct", result["clean"]["windowed"]["false_alarm_pct"], 0),
    ]
    settings = {"ranks": RANKS, "steps": STEPS, "runs": RUNS}
    judge("results/bench/stragglers.json", settings | {"cases": result}, limits)


def simulate(seed: int, factor: float, share: float) -> np.ndarray:
    """Own work [steps, ranks] in seconds; a negative share of the steps is one stretch."""
    generator = np.random.default_rng(seed)
    local = 1 + 0.02 * generator.standard_normal((STEPS, RANKS))
    local[generator.random((STEPS, RANKS)) < 0.002] *= 3
    if share < 0:
        start = generator.integers(0, int(STEPS * (1 + share)))
        local[start : start + int(-share * STEPS), SLOW] *= factor
    else:
        local[generator.random(STEPS) < share, SLOW] *= factor
    return local


def windowed(local: np.ndarray) -> set[int]:
    """The report's rule."""
    hits = np.zeros(RANKS, int)
    for window in stragglers.windows_of(STEPS):
        hits[list(stragglers.slow_ranks(local[window]))] += 1
    return set(np.flatnonzero(hits >= stragglers.LEAST_WINDOWS).tolist())


def whole_run(local: np.ndarray) -> set[int]:
    """The same rule on one window."""
    always = stragglers.MEASURES[0]
    relative, z = stragglers.excess(local, always)
    return set(np.flatnonzero((relative > always.slower_by) & (z > stragglers.Z_LIMIT)).tolist())


def three_sigma(local: np.ndarray) -> set[int]:
    """Mean time over three standard deviations of the ranks' means."""
    means = local.mean(axis=0)
    return set(np.flatnonzero(means > means.mean() + 3 * means.std()).tolist())


RULES = {"windowed": windowed, "one median": whole_run, "mean over 3 sigma": three_sigma}


if __name__ == "__main__":
    main()
