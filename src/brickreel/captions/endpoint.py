"""Captions from an OpenAI-compatible endpoint: everything around the asking."""

import logging
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from brickreel import files
from brickreel.captions import client, ledger, prices, prompts, server
from brickreel.captions import request as requests
from brickreel.captions.asking import Asking
from brickreel.captions.batch import Batching
from brickreel.captions.items import Caption, Item
from brickreel.captions.judge import judge
from brickreel.captions.ledger import Ledger
from brickreel.captions.prices import Price
from brickreel.captions.request import Request
from brickreel.captions.underway import UnderWay
from brickreel.config import Caption as Settings
from brickreel.progress import Bar
from brickreel.stages import Shard

logger = logging.getLogger("brickreel")

ESTIMATES = "estimates.jsonl"
FORECAST = Path("results/caption/forecast.json")
_SENT = ("material", "frames", "image_side", "jpeg_quality", "detail")
"""Settings without which, besides the model and the prompts, no stored answer counts."""


def check(settings: Settings) -> None:
    """Say before any work what is missing. Raises ValueError: no key, no price."""
    client.api_key(settings)
    prices.price(settings)


async def caption(
    items: Sequence[Item], settings: Settings, shard: Shard, allowed_failures: int
) -> dict[tuple[str, str], Caption]:
    """Captions by item name. Raises EndpointError or ValueError when asking on makes no sense."""
    label = f"{shard.name}/{shard.count}"
    price = prices.price(settings)
    wanted = [requests.request(item, settings) for item in items]
    with ledger.sole(ledger.FOLDER, label):
        account = Ledger(
            ledger.FOLDER, label, settings.budget_usd, frozenset(r.key for r in wanted), 2 * settings.timeout_s
        )
        account.open()
        open_requests = [r for r in wanted if judge(account.rows.get(r.key, []), settings)[0] is None]
        own = None
        if settings.server.command and open_requests:
            own = server.running(settings.server, settings.model, settings.api_key_env)
        base_url, key = (own.url, own.key) if own else (settings.base_url, client.api_key(settings))
        async with client.connect(settings, base_url, key) as api:
            under_way = UnderWay(price, account, api, settings.attempts)
            estimate(open_requests, wanted, settings, price, account, under_way.keys())
            with Bar(f"caption {shard.name}", len(wanted), "clips") as bar:
                try:
                    if own or not settings.server.command:
                        await under_way.await_earlier(bar)
                    if under_way.stop:
                        raise under_way.stop
                    if settings.batch:
                        batching = Batching(settings, price, account, api, allowed_failures, under_way)
                        return await batching.run(wanted, bar)
                    return await Asking(settings, price, account, api, allowed_failures).run(wanted, bar)
                finally:
                    if own:
                        own.check()  # a server that has ended explains what failed better than a refused connection


def estimate(
    open_requests: Sequence[Request],
    wanted: Sequence[Request],
    settings: Settings,
    price: Price,
    account: Ledger,
    in_batches: Set[str] = frozenset(),
) -> None:
    """Print what the requests will cost, and keep the forecast beside the ledger for the report.

    `in_batches`: keys that are asked for already; their money is reserved.
    """

    open_requests = [r for r in open_requests if r.key not in in_batches]
    expected = sum(price.usd(*requests.expected_tokens(r, settings, price, account)) for r in open_requests)
    most = sum(requests.most_usd(r, settings, price, account) for r in open_requests)
    logger.info(
        "caption %s: %d requests to %s for %d clips (%d are answered or in batches already): about %.2f USD, at most "
        "%.2f; %.2f of the budget of %.2f USD is spent",
        account.shard, len(open_requests), settings.model, len(wanted), len(wanted) - len(open_requests), expected,
        most, account.spent_usd + account.outstanding_usd, settings.budget_usd,
    )  # fmt: skip
    row = {
        "time_s": time.time(),
        "shard": account.shard,
        "model": settings.model,
        "sent": {"prompts": prompts.VERSIONS} | {name: getattr(settings, name) for name in _SENT},
        "requests": len(open_requests),
        "usd": expected,
        "usd_most": most,
        "usd_spent": account.spent_usd + account.outstanding_usd,
    }
    with account.locked():  # shards that start together must not overwrite the forecast with an older one
        files.append_json_line(Path(ledger.FOLDER) / ESTIMATES, row)
        estimates = files.read_json_lines(Path(ledger.FOLDER) / ESTIMATES)
        files.write_json(FORECAST, {"usd": forecast(estimates)})
    _compare(row, firsts(estimates), settings.budget_usd)


def _compare(row: Mapping[str, Any], known: Sequence[Mapping[str, Any]], budget_usd: float) -> None:
    """Say what the whole run will cost, and warn where the budget does not suffice for it."""
    shard, count = row["shard"], int(row["shard"].partition("/")[2])
    # Clips are spread evenly: shards that have not started yet cost what the others do.
    whole = sum(r["usd"] for r in known) * count / len(known)
    left = budget_usd - known[0]["usd_spent"]
    if count > 1:
        logger.info(
            "caption %s: all %d shards, as %d of them forecast: about %.2f USD; %.2f of the budget were left before",
            shard, count, len(known), whole, left,
        )  # fmt: skip
    checks = [(row["usd"], budget_usd - row["usd_spent"], "its requests")]
    if row in known:  # a shard that starts again knows more than the first forecasts did
        checks.insert(0, (whole, left, f"the {count} shards"))
    for needed, there, what in checks:
        if needed > max(0.0, there):
            logger.warning(
                "caption %s: the budget lasts for about %.0f %% of %s: raise caption.budget_usd",
                shard, max(0.0, 100 * there / needed), what,
            )  # fmt: skip
            break


def firsts(estimates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each shard's first estimate for the model, prompts and pictures last used, the oldest first."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in estimates:
        known = found.get(row["shard"])
        if known is None or _asked(known) != _asked(row):
            found.pop(row["shard"], None)
            found[row["shard"]] = row
    if not estimates:
        return []
    # Shards of an earlier run that was divided otherwise had the same clips.
    asked, count = _asked(estimates[-1]), estimates[-1]["shard"].partition("/")[2]
    return [r for r in found.values() if _asked(r) == asked and r["shard"].partition("/")[2] == count]


def _asked(estimate: Mapping[str, Any]) -> tuple[Any, Any]:
    return estimate["model"], estimate.get("sent")


def forecast(estimates: Sequence[Mapping[str, Any]]) -> float:
    """What the ledger was expected to say in the end, in USD, from each shard's first estimate for what was last asked:
    that, and what had been spent before on anything else."""
    known = firsts(estimates)
    return float(known[0]["usd_spent"] + sum(r["usd"] for r in known)) if known else 0.0


def spent(settings: Settings) -> dict[str, Any]:
    """What the ledger says in all, beside the forecast and the budget."""
    account = Ledger(ledger.FOLDER, "review", settings.budget_usd, frozenset())
    account.commit([], [])
    return {
        "usd": account.spent_usd + account.outstanding_usd,
        "requests": sum(account.counts.values()),
        "usd_forecast": files.read_json(FORECAST)["usd"] if FORECAST.exists() else 0.0,
        "budget_usd": settings.budget_usd,
    }
