"""Keep what two test runs did, for the page "How we test".

python .ci/record.py DEFAULT.xml THOROUGH.xml docs/explanation/testing.json

The files are those of `pytest --junitxml`. Properties that tests record, such as how many jobs they
ran, are summed up by folder.
"""

from __future__ import annotations

import json
import platform
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET


def counted(path: str) -> dict[str, dict[str, int]]:
    """Return the number of tests that passed in each folder of `tests`, and their properties."""
    folders: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case in ET.parse(path).iter("testcase"):  # noqa: S314  # our own file
        if any(case.find(other) is not None for other in ("skipped", "failure", "error")):
            continue
        _, folder, *deeper = case.attrib["classname"].split(".")
        counts = folders[folder if deeper else "."]
        counts["tests"] += 1
        for made in case.iter("property"):
            counts[made.attrib["name"]] += int(made.attrib["value"])
    return {folder: dict(counts) for folder, counts in sorted(folders.items())}


def main(default: str, thorough: str, out: str) -> None:
    """Write the record of the two runs."""
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "default": counted(default),
        "thorough": counted(thorough),
    }
    Path(out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
