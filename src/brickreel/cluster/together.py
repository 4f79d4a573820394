"""Work in whose collectives ranks wait for each other: when it fails on one, the others hear of it in seconds."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from brickreel.cluster import exits, sweep
from brickreel.cluster.ranks import Ranks

T = TypeVar("T")

LOOK_S = 1.0
LOOKS = 10
"""Looks at each other that ranks have left to end once one of them has failed: most often all meet the same error."""


def run(work: Callable[[], T], failed: Callable[[T], bool], ranks: Ranks) -> list[T | None]:
    """What `work` returns on each rank, by rank; a collective call of all ranks.

    None stands for a rank that still waits in a collective for one that has failed. Its thread never ends: all ranks
    are to end soon, without another collective than those of `sweep.gather` (`exits.STUCK` is set).
    """
    if ranks.world_size == 1:
        return [work()]
    outcome: Future[T] = Future()

    def call() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="together", daemon=True).start()
    looks = LOOKS
    try:
        while True:
            # Ranks that have ended wait for the slowest look: all count alike.
            wait([outcome], LOOK_S)
            ended: list[list[T]] = sweep.gather([outcome.result()] if outcome.done() else [], ranks)
            if all(ended) or not looks:
                break
            looks -= any(failed(one) for found in ended for one in found)
    except BaseException:
        exits.STUCK.set()  # a rank is gone, or this one goes: the thread may wait for ever
        raise
    if not all(ended):
        exits.STUCK.set()
    return [found[0] if found else None for found in ended]
