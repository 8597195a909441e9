"""A table of metrics that are functions of sums over samples: rows with intervals, and paired differences.

S sums, M metrics. Intervals are percentile bootstraps that draw whole clusters (images).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.bootstrap import Floats, Integers, interval, ratio_of_sums, sums_by_cluster
from eval.scoring.rows import metric_row
from pipeline.progress_line import ProgressLine

Key = tuple[str, str, str]  # name, protocol, subset


@dataclass(frozen=True)
class Table:
    """M metrics: `statistic` maps totals [..., S] of `sums` [clusters, S] to the values [..., M] of metrics.json.

    `support` [M]: how many clusters hold samples of a metric's subset, where that is not all.
    """

    keys: Sequence[Key]
    sums: Floats
    statistic: Callable[[Floats], Floats]
    decimals: int = 4
    support: Integers | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One row a metric, with its 95% interval."""
        low, high = interval(self.sums, self.statistic, support=self.support)
        return self._rows(self.statistic(self.sums.sum(axis=0)), low, high)

    def difference_rows(self, other: "Table") -> list[dict[str, Any]]:
        """This minus `other`. Both have the same clusters in the same order, and are resampled together."""
        assert list(self.keys) == list(other.keys) and len(self.sums) == len(other.sums)
        width = self.sums.shape[1]

        def difference(totals: Floats) -> Floats:
            gap: Floats = self.statistic(totals[..., :width]) - other.statistic(totals[..., width:])
            return gap

        sums = np.hstack([self.sums, other.sums])
        low, high = interval(sums, difference, support=self.support)
        return self._rows(difference(sums.sum(axis=0)), low, high)

    def _rows(self, values: Floats, low: Floats, high: Floats) -> list[dict[str, Any]]:
        return [
            metric_row(*key, round(float(values[place]), self.decimals), low[place], high[place])
            for place, key in enumerate(self.keys)
        ]


@dataclass(frozen=True)
class Scored:
    """A scored prediction file: its tables, further rows (without a bootstrap interval), and a line a sample."""

    task: str
    n: int
    tables: Sequence[Table]
    samples: list[dict[str, Any]]
    other_rows: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        tables = ProgressLine("computing intervals of", len(self.tables), "tables").follow(self.tables)
        rows = [row for table in tables for row in table.rows()]
        return {"task": self.task, "n": self.n, **self.more, "metrics": rows + self.other_rows}

    def differences(self, other: "Scored") -> list[dict[str, Any]]:
        """The paired differences to another prediction file of the same samples."""
        pairs = list(zip(self.tables, other.tables, strict=True))
        line = ProgressLine("computing intervals of", len(pairs), "differences")
        return [row for mine, others in line.follow(pairs) for row in mine.difference_rows(others)]


def means_table(
    keys: Sequence[Key], values: Floats, member: Floats, clusters: Sequence[Any] | NDArray[Any], decimals: int
) -> Table:
    """Means of `values` [samples, M] over the samples that `member` [samples, M] (0 or 1) counts."""
    sums = sums_by_cluster(np.hstack([values * member, member]), clusters)
    return Table(keys, sums, ratio_of_sums, decimals, (sums[:, values.shape[1] :] > 0).sum(axis=0))
