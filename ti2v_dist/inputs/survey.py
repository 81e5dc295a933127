"""A manifest gone through once, no row kept: what makes it unusable, and how many rows a command takes of it."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from ti2v_dist.canonical import canonical_json
from ti2v_dist.inputs.checks import (
    MAX_COLUMNS,
    REQUIRED,
    Problem,
    check_columns,
    warn_near_names,
)
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.ids import Ids, is_id, twins_among
from ti2v_dist.inputs.opening import Rows
from ti2v_dist.inputs.rows import Row, check_count
from ti2v_dist.inputs.taking import Sought, Taking
from ti2v_dist.inputs.told import MAX_TOLD
from ti2v_dist.specs import NEEDED

KEPT_COLUMNS = 50 * MAX_COLUMNS
"""Names of columns that are kept, to count them: a manifest of so many is refused."""


class Survey:
    """What one look at all rows has found. Of the problems the first ones are kept, in the order of their lines."""

    def __init__(self, url: str, defaults: RequestDefaults, taking: Taking, rows: Rows) -> None:
        """Raises `ValueError` for a file that is not what it claims, and for an id of `only` that is not there."""
        self._url, self._defaults, self._taking = url, defaults, taking
        self.ids, self.rows = Ids(), 0
        self.columns: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.more_problems = 0
        self._count = self._good = 0
        self._is_made: dict[object, bool] = {}
        sought, watched = Sought(taking), self._watched(rows.read())
        self._digest = None if rows.sha256 else hashlib.sha256()
        for row in taking.rows(watched):
            self.rows += taking.count(row)
            sought.see(row)
        deque(watched, maxlen=0)  # what is not taken is looked at all the same
        sought.check(value for row in rows.read() if is_id(value := row.columns.get("id")))
        self._conclude(rows)
        self.sha256 = self._digest.hexdigest() if self._digest else rows.sha256

    def warnings(self) -> Iterator[str]:
        """Words on columns that are nearly settings."""
        return warn_near_names(self.columns)

    def is_bad(self, line: int) -> bool:
        """Whether the row of this line is among what makes the manifest unusable."""
        at = np.searchsorted(self._bad_lines, line) if len(self._bad_lines) else 0
        return bool(at < len(self._bad_lines) and self._bad_lines[at] == line)

    def _watched(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that are rows, each looked at on its way."""
        variations, columns = self._taking.variations, self.columns
        for row in rows:
            self._count += 1
            check_count(self._count * variations)
            if row.error:
                self.rows += 1
                self._tell([Problem(row.line, None, row.text, row.error)])
                continue
            self._good += 1
            if self._digest:
                self._digest.update(canonical_json(row.columns))
            if not row.columns.keys() <= columns.keys() and len(columns) < KEPT_COLUMNS:
                for name in row.columns:
                    columns.setdefault(name, row.line)
            self._note_sampler(row)
            value = row.columns.get("id")
            if isinstance(value, str) and is_id(first := value if variations == 1 else f"{value}-000"):
                self.ids.add(first, row.line)
            yield row

    def _note_sampler(self, row: Row) -> None:
        sampler = row.columns.get("sampler")
        if isinstance(sampler, str | None) and sampler not in self._is_made and len(self._is_made) < MAX_TOLD:
            self._is_made[sampler] = _is_made(sampler, self._defaults)

    def _tell(self, problems: Iterable[Problem], more: int = 0) -> None:
        for problem in problems:
            if len(self.problems) < MAX_TOLD:
                self.problems.append(problem)
            else:
                self.more_problems += 1
        self.more_problems += more

    def _conclude(self, rows: Rows) -> None:
        """What can be said when all rows were seen."""
        of_lines, self.problems = self.problems, []
        if not self._count:
            self._tell([Problem(0, None, self._url, f"manifest {self._url!r} has no row")])
        required = [name for name in REQUIRED if name != "image" or not any(self._is_made.values())]
        if self._good:
            self._tell(check_columns(self._url, self.columns, required))
        bad_lines = [problem.line for problem in self.problems]
        later, first = self.ids.twins()
        shown = {*later[:MAX_TOLD].tolist(), *first[:MAX_TOLD].tolist()}
        twins = [self._twin(row, line) for row, line in twins_among(rows.read(), shown)] if shown else []
        self.more_problems += max(0, len(later) - MAX_TOLD)
        kept = sorted([*self.problems, *of_lines, *twins], key=lambda problem: problem.line)
        self.problems = kept[:MAX_TOLD]
        self.more_problems += len(kept) - len(self.problems)
        twin_lines = [problem.line for problem in twins] if len(later) <= MAX_TOLD else later
        self._bad_lines = np.unique(np.concatenate([bad_lines, twin_lines]).astype(np.int64))

    def _twin(self, row: Row, line: int) -> Problem:
        value = row.columns["id"] if self._taking.variations == 1 else f"{row.columns['id']}-000"
        return Problem(row.line, "id", value, f"id {value!r} is on line {line} and on line {row.line}")


def _is_made(sampler: str | None, defaults: RequestDefaults) -> bool:
    """Whether the sampler may make frame 0."""
    try:
        return defaults.spec(sampler).image != NEEDED
    except ValueError:  # which is told when the request is made
        return False
