"""The command `asyncjobs`, for operators.

This module imports neither click nor rich, so that it can name the extra if they are missing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec


def main() -> None:
    """Run the command named by the process arguments, and exit."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        packages = " and ".join(missing)
        print(  # noqa: T201  # click may be missing
            f"The command asyncjobs needs {packages}: pip install 'asyncjobs-http[cli]'.",
            file=sys.stderr,
        )
        sys.exit(1)
    import_module("asyncjobs.cli.app").commands(prog_name="asyncjobs")
