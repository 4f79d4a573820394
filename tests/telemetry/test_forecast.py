"""The plan against what happened: like is compared with like."""

from brickreel.telemetry import forecast

PLAN = {"usd": {"value": 12.0, "low": 8.0, "high": 14.0}, "energy_kwh": {"value": 60.0}}
ENERGY = {"kwh": 55.0, "recorded_pct": 100.0, "usd_gpu": None, "usd_per_gpu_hour": None, "usd_energy": 11.5}


def rows(**changes):
    return {row["what"]: (row["actual"], row["unit"]) for row in forecast.compare(PLAN, {"energy": ENERGY | changes})}


def test_with_a_price_of_electricity_alone_the_plan_meets_what_the_electricity_cost():
    assert rows()["usd"] == (11.5, "USD of electricity")


def test_with_a_price_of_gpu_hours_the_plan_meets_what_those_cost():
    assert rows(usd_gpu=30.0, usd_per_gpu_hour=2.5)["usd"] == (30.0, "USD")


def test_energy_of_a_part_of_the_time_is_not_held_against_the_plan():
    told = rows(recorded_pct=40.0)
    assert (told["energy_kwh"][0], told["usd"][0]) == (None, None)
    assert rows()["energy_kwh"][0] == 55.0
