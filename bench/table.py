"""Turn the JSON of pytest-benchmark into the README's tables: ``python bench/table.py FILE.json``."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def tables(report: dict) -> str:
    """Markdown: one table a group, median time per pixel and its ratio to tam_fast's."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for entry in report["benchmarks"]:
        groups[entry["group"]].append(entry)
    machine = report["machine_info"]["tam_fast"]
    lines = [
        ", ".join(f"{key} {value}" for key, value in machine.items()),
        f"commit {report['commit_info']['id'][:12]}",
    ]
    for group, entries in groups.items():
        per_pixel = {e["extra_info"]["name"]: e["stats"]["median"] / e["extra_info"]["pixels"] * 1e9 for e in entries}
        own = per_pixel["tam_fast"]
        lines += ["", f"**{group}**", "", "| | ns a pixel (median) | time relative to tam_fast |", "|---|---|---|"]
        for name, value in sorted(per_pixel.items(), key=lambda item: item[1]):
            lines.append(f"| {name} | {value:,.2f} | {value / own:,.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text())))
