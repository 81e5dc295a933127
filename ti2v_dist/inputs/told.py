"""What a manifest's reader tells the user: each thing once, and of many only the first ones."""

from collections.abc import Iterable, Iterator

MAX_TOLD = 1000


class Told:
    """Warnings that were told already; of those after the first `MAX_TOLD` only the number is kept."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self.more = 0

    def news(self, warnings: Iterable[str]) -> Iterator[str]:
        """The warnings that are to be told now."""
        for warning in warnings:
            if warning in self._told:
                continue
            if len(self._told) < MAX_TOLD:
                self._told.add(warning)
                yield warning
            else:
                self.more += 1

    def rest(self) -> Iterator[str]:
        """A word on those that were not told."""
        if self.more:
            yield f"{self.more:,} more warnings are not shown"
