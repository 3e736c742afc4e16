"""Writes what the fault matrix found into a table, when ``FAULTS_TABLE`` names a Markdown file."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
_NAME = re.compile(r"::test_([a-z_0-9]+)(?:\[(.*)\])?$")


def pytest_terminal_summary(terminalreporter):
    target = os.environ.get("FAULTS_TABLE")
    if not target or not Path(target).is_file():
        return
    rows: dict[tuple[str, str], list[bool]] = defaultdict(list)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when != "call" or "/faults/" not in report.nodeid:
                continue
            name = _NAME.search(report.nodeid)
            if name is None:
                continue
            test = name[1].replace("_", " ")
            fault = re.sub(r" \d+$", "", name[2] or "")
            fault = dict(report.user_properties).get("fault", fault)
            rows[fault or test, test].append(outcome == "passed")
            seconds[fault or test, test] += report.duration
    if not rows:
        return
    lines = ["| what dies or goes wrong | what must be so | passed | seconds each |", "|---|---|---|---|"]
    for key in sorted(rows, key=lambda key: (key[1], key[0])):
        done = rows[key]
        lines.append(f"| {key[0]} | {key[1]} | {sum(done)} of {len(done)} | {seconds[key] / len(done):.0f} |")
    path = Path(target)
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join([BEGIN, "", *lines, "", END])
    path.write_text(before + table + after, encoding="utf-8")
    terminalreporter.write_line(f"table written to {target}")
