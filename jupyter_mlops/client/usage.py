"""What the ranks of a job use, over time."""

from __future__ import annotations

from typing import Any

from . import render
from .record import Record


class JobUsage(Record):
    """CPU, memory and GPU of each rank, of all attempts; ``df()`` for the samples."""

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Oldest first: ``{attempt, started_at, ended_at, samples: {times, ranks}}``; times in ms since the epoch."""
        return self._data.get("attempts") or []

    def df(self) -> Any:
        """A pandas DataFrame, one row for each attempt, time and rank.

        Columns: attempt, time (UTC), rank, node, cpu (cores), rss (bytes), threads, gpu (percent), gpu_memory (bytes).
        """
        import pandas as pd

        columns = ("cpu", "rss", "threads", "gpu", "gpu_memory")
        rows = [
            [attempt["attempt"], moment, rank["rank"], rank.get("node", 0), *(rank[column][at] for column in columns)]
            for attempt in self.attempts
            for at, moment in enumerate(attempt["samples"]["times"])
            for rank in attempt["samples"]["ranks"]
        ]
        frame = pd.DataFrame(rows, columns=["attempt", "time", "rank", "node", *columns])
        frame["time"] = pd.to_datetime(frame["time"], unit="ms", utc=True)
        return frame

    to_pandas = df

    def _rows(self) -> list[list[Any]]:
        return [
            [attempt["attempt"], rank.get("node", 0), rank["rank"], _mean(rank["cpu"]), render.size(rank["peak_rss"]),
             _mean(rank["gpu"]), render.size(max(known)) if (known := _known(rank["gpu_memory"])) else ""]
            for attempt in self.attempts for rank in attempt["samples"]["ranks"]
        ]

    def _shown(self) -> tuple[list[str], list[list[Any]]]:
        columns, rows = ["attempt", "node", "rank", "cores", "most memory", "GPU %", "GPU memory"], self._rows()
        if not any(row[5] is not None or row[6] for row in rows):
            columns, rows = columns[:5], [row[:5] for row in rows]
        if not any(row[1] for row in rows):
            columns, rows = columns[:1] + columns[2:], [row[:1] + row[2:] for row in rows]
        return columns, rows

    def text(self) -> str:
        """Mean cores and most memory of each rank."""
        columns, rows = self._shown()
        return render.text_table(columns, rows, "no samples yet: ranks are looked at every 2 s")

    def html(self) -> str:
        """The same as a table, with curves of the last attempt."""
        columns, rows = self._shown()
        parts = [render.table(columns, rows, empty="no samples yet: ranks are looked at every 2 s")]
        if self.attempts:
            samples = self.attempts[-1]["samples"]
            begun = samples["times"][0] if samples["times"] else 0
            seconds = [(moment - begun) / 1000 for moment in samples["times"]]
            for title, key, unit in (("CPU cores", "cpu", 1), ("memory in MB", "rss", 1e6), ("GPU %", "gpu", 1)):
                series = {
                    f"rank {rank['rank']}": (seconds, [None if v is None else v / unit for v in rank[key]])
                    for rank in samples["ranks"][:8] if _known(rank[key])
                }
                drawn = render.curve(series, title)
                if drawn:
                    parts.append(f'<figure style="margin:0"><figcaption style="font-size:11px">{title} over seconds '
                                 f"{render.legend(list(series))}</figcaption>{drawn}</figure>")
        return "".join(parts)

    def _line(self) -> str:
        return f"{self._data.get('name', '')} {len(self.attempts)} attempts"

    def _facts(self) -> list[tuple[str, Any]]:
        return [(f"attempt {row[0]} rank {row[2]}", f"{row[3] or 0:g} cores, {row[4]}") for row in self._rows()]


def _known(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _mean(values: list[Any]) -> float | None:
    known = _known(values)
    return round(sum(known) / len(known), 2) if known else None
