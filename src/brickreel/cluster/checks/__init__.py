"""Preflight's checks: each looks at one thing, says a number with its unit, and passes, warns or fails."""

from typing import Any, Literal, NamedTuple

Result = Literal["pass", "warn", "fail", "not measured"]


class Check(NamedTuple):
    """One finding about one node (or about all of them: node `all`)."""

    name: str
    node: str
    result: Result
    value: float | str | None = None
    unit: str = ""
    threshold: str = ""
    """The limit that decided, in words."""
    reason: str = ""
    """One sentence: what is wrong and what to do, or why it was not measured."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in health.json."""
        return self._asdict()


def at_least(name: str, node: str, value: float, unit: str, warn: float, fail: float, reason: str) -> Check:
    """A check of a number that should be large."""
    result: Result = "fail" if value < fail else "warn" if value < warn else "pass"
    return Check(
        name, node, result, value, unit, f"warn below {warn:g}, fail below {fail:g}", reason if value < warn else ""
    )


def at_most(name: str, node: str, value: float, unit: str, warn: float, fail: float, reason: str) -> Check:
    """A check of a number that should be small."""
    result: Result = "fail" if value > fail else "warn" if value > warn else "pass"
    return Check(
        name, node, result, value, unit, f"warn above {warn:g}, fail above {fail:g}", reason if value > warn else ""
    )


def verdict(checks: list[Check]) -> Result:
    """The worst result of all; checks that were not measured do not count."""
    results = {check.result for check in checks}
    return "fail" if "fail" in results else "warn" if "warn" in results else "pass"
