"""Which findings of the checks are new, changed or over. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from healthcheck.finding import Finding


class FindingLedger:
    """Holds the findings that stand. Evidence alone is no change: its numbers move with every look."""

    def __init__(self) -> None:
        self._standing: dict[tuple[str, str, int], Finding] = {}

    def update(
        self, found: Iterable[Finding], checked: Iterable[tuple[str, int]]
    ) -> tuple[list[Finding], list[Finding]]:
        """(new or changed, cleared) after a look. `checked` are the (check, gpu) that gave a verdict.

        A check that was skipped clears nothing: a GPU that stopped answering has not become healthy.
        """
        now = {finding.key: finding for finding in found}
        answered = set(checked)
        said = [finding for key, finding in now.items() if _differs(self._standing.get(key), finding)]
        over = [f for key, f in self._standing.items() if key not in now and (f.check, f.gpu) in answered]
        for finding in over:
            del self._standing[finding.key]
        self._standing.update(now)
        return said, over

    def standing(self) -> list[Finding]:
        return list(self._standing.values())


def _differs(before: Finding | None, now: Finding) -> bool:
    if before is None:
        return True
    return (before.severity, before.action, before.sentence) != (now.severity, now.action, now.sentence)
