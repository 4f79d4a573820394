"""Captions from an OpenAI-compatible endpoint: everything around the asking."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brickreel import files
from brickreel.captions import client, ledger, prices, server
from brickreel.captions import request as requests
from brickreel.captions.asking import Asking
from brickreel.captions.batch import Batching
from brickreel.captions.items import Caption, Item
from brickreel.captions.judge import judge
from brickreel.captions.ledger import Ledger
from brickreel.captions.prices import Price
from brickreel.captions.request import Request
from brickreel.config import Caption as Settings
from brickreel.progress import Bar
from brickreel.stages import Shard

logger = logging.getLogger("brickreel")

ESTIMATES = "estimates.jsonl"
FORECAST = Path("results/caption/forecast.json")


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
    own = server.running(settings.server, settings.model) if settings.server.command else None
    with ledger.sole(ledger.FOLDER, label):
        account = Ledger(
            ledger.FOLDER, label, settings.budget_usd, frozenset(r.key for r in wanted), 2 * settings.timeout_s
        )
        account.open()
        open_requests = [r for r in wanted if judge(account.rows.get(r.key, []), settings)[0] is None]
        estimate(open_requests, wanted, settings, price, account)
        base_url = own.url if own else settings.base_url
        async with client.connect(settings, base_url, client.api_key(settings)) as api:
            with Bar(f"caption {shard.name}", len(wanted), "clips") as bar:
                way = Batching if settings.batch else Asking
                try:
                    return await way(settings, price, account, api, allowed_failures).run(wanted, bar)
                finally:
                    if own:
                        own.check()  # a server that has ended explains what failed better than a refused connection


def estimate(
    open_requests: Sequence[Request], wanted: Sequence[Request], settings: Settings, price: Price, account: Ledger
) -> None:
    """Print what the requests will cost, and keep the forecast beside the ledger for the report."""
    tokens = [requests.expected_tokens(r, settings, price, account) for r in open_requests]
    expected = sum(price.usd(*each) for each in tokens)
    most = sum(requests.most_usd(r, settings, price, account) for r in open_requests)
    logger.info(
        "caption %s: %d requests to %s for %d clips (%d are answered already): about %.2f USD, at most %.2f; "
        "%.2f of the budget of %.2f USD is spent",
        account.shard, len(open_requests), settings.model, len(wanted), len(wanted) - len(open_requests), expected,
        most, account.spent_usd + account.outstanding_usd, settings.budget_usd,
    )  # fmt: skip
    left = settings.budget_usd - account.spent_usd - account.outstanding_usd
    if expected > left:
        logger.warning(
            "caption %s: the budget lasts for about %.0f %% of them: raise caption.budget_usd",
            account.shard, max(0.0, 100 * left / expected),
        )  # fmt: skip
    answered = {r.key for r in wanted}.difference(r.key for r in open_requests)
    files.append_json_line(
        Path(ledger.FOLDER) / ESTIMATES,
        {
            "time_s": time.time(),
            "shard": account.shard,
            "model": settings.model,
            "requests": len(open_requests),
            "usd": expected,
            "usd_most": most,
            "usd_answered": sum(row["usd"] for key in answered for row in account.rows.get(key, [])),
        },
    )
    files.write_json(FORECAST, {"usd": forecast(files.read_json_lines(Path(ledger.FOLDER) / ESTIMATES))})


def forecast(estimates: Sequence[Mapping[str, Any]]) -> float:
    """What all shards were expected to cost in all, from each shard's first estimate for the model last used."""
    firsts: dict[str, Mapping[str, Any]] = {}
    for row in estimates:
        known = firsts.get(row["shard"])
        if known is None or known["model"] != row["model"]:
            firsts[row["shard"]] = row
    # Shards of an earlier run that was divided otherwise had the same clips.
    count = estimates[-1]["shard"].partition("/")[2] if estimates else ""
    return float(sum(r["usd"] + r["usd_answered"] for r in firsts.values() if r["shard"].partition("/")[2] == count))


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
