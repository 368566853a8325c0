"""`python examples/celery_app/run.py --once`: broker, worker, web process, and an export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.examples.conftest import EXAMPLES


def test_celery_runs_the_export_of_the_whole_database(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "EXPORTS_REDIS"}
    shown = subprocess.run(
        [sys.executable, str(EXAMPLES / "celery_app" / "run.py"), "--once"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "202 Accepted" in shown.stdout
    folder = tmp_path / "asyncjobs-demo"
    [file] = (one for one in folder.rglob("job_*/*") if one.is_file())
    with file.open(encoding="utf-8", newline="") as lines:
        assert lines.readline().startswith("code_point,character,name,category")
        assert sum(1 for _ in lines) > 100_000
    log = (folder / "worker.log").read_text()
    assert "Task asyncjobs.run" in log
    assert "is completed" in log
