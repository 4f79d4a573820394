"""The part of the summary that is about the data."""

from brickreel.telemetry import dataset
from brickreel.telemetry.project import ProjectFiles


def test_captions_that_were_dropped_have_not_failed():
    columns = dict.fromkeys(("reason", "model", "source", "words", "tokens_in", "tokens_out", "usd"))
    outcomes = [("ok", None, 7), ("dropped", "no movement", 4), ("dropped", "single image", 1), ("failed", "500", 2)]
    rows = [
        columns | {"outcome": outcome, "reason": reason, "count": count, "words": 0}
        for outcome, reason, count in outcomes
    ]
    found = dataset.summarise(ProjectFiles("p", captions=rows))["captions"]
    assert (found["ok"], found["dropped"], found["failed"]) == (7, 5, 2)
    assert [(row["name"], row["count"]) for row in found["reasons"]] == [
        ("no movement", 4),
        ("500", 2),
        ("single image", 1),
    ]
