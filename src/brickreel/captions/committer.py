"""Group commit: the requests of many coroutines pass the shared account together, one lock and one sync per group."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from brickreel.captions.ledger import Decision, Ledger, Reservation


class Committer:
    """Collects finished rows and reservations while the last group is being written."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._finished: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._asked: list[tuple[Reservation, asyncio.Future[Decision]]] = []
        self._wake = asyncio.Event()
        # The lock and the disk may take their time; the requests in flight must not wait for them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def reserve(self, reservation: Reservation) -> Decision:
        """Ask the account for a request's money; the reservation is on the disk when this returns `granted`."""
        done: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._asked.append((reservation, done))
        self._wake.set()
        return await done

    async def finish(self, row: dict[str, Any]) -> None:
        """Write the row of a request that has ended; it is on the disk when this returns."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finished.append((row, done))
        self._wake.set()
        await done

    async def run(self) -> None:
        """Write groups until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            finished, self._finished = self._finished, []
            asked, self._asked = self._asked, []
            rows, reservations = [row for row, _ in finished], [reservation for reservation, _ in asked]
            try:
                decisions = await loop.run_in_executor(self._thread, self.ledger.commit, rows, reservations)
            except Exception as error:  # whatever it is, nobody may wait for ever
                for future in [f for _, f in finished] + [f for _, f in asked]:
                    if not future.done():
                        future.set_exception(error)
                continue
            for _, written in finished:
                if not written.done():
                    written.set_result(None)
            for (_, decided), decision in zip(asked, decisions, strict=True):
                if not decided.done():
                    decided.set_result(decision)
