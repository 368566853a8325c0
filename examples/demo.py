"""Demonstrate a server, an export submitted over HTTP, its progress and its result.

python examples/demo.py            # keeps serving, for you to try
python examples/demo.py --once     # exits after the download; exit code 1 if a check failed
"""

import argparse
import csv
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

PATIENCE_SECONDS = 120

console = Console()


def main() -> int:
    """Run the demonstration and return the exit code."""
    arguments = parse_arguments()
    folder: Path = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # The example reads these when serving() imports it.
    os.environ.setdefault("EXPORTS_STORE", f"sqlite:///{folder / 'jobs.db'}")
    os.environ.setdefault("EXPORTS_FOLDER", str(folder / "exports"))
    wanted = {"format": arguments.format, "category": arguments.category}
    try:
        with serving(arguments.port) as url:
            with httpx2.Client(base_url=url, timeout=30) as client:
                run_export(client, wanted, folder)
            if not arguments.once:
                go_on_serving(url)
    except BrokenPromise as broken:
        console.print(f"[bold red]Not as promised:[/] {broken}")
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--once", action="store_true", help="exit after the download")
    parser.add_argument("--format", choices=["csv", "jsonl"], default="csv")
    parser.add_argument("--category", help="one general category only, such as Lu")
    parser.add_argument("--folder", type=Path, default=Path("asyncjobs-demo"))
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    return parser.parse_args()


class BrokenPromise(Exception):
    """The server did not do what its documentation says."""


def expect(holds: object, otherwise: str) -> None:
    """Raise `BrokenPromise` with a message if a condition is false."""
    if not holds:
        raise BrokenPromise(otherwise)


@contextmanager
def serving(port: int) -> Generator[str]:
    """Run the FastAPI example on uvicorn inside the block; yield its URL."""
    sys.path.insert(0, str(Path(__file__).parent))
    from fastapi_app import app  # noqa: PLC0415  # it reads the environment set above

    listening = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        expect(thread.is_alive(), "the server did not start")
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def run_export(client: httpx2.Client, wanted: dict[str, Any], folder: Path) -> None:
    """Submit, follow and download an export, and check each response."""
    console.print(f"POST {client.base_url.join('/api/exports')}  {wanted}")
    answer = client.post("/api/exports", json=wanted)
    console.print(f"{answer.status_code} {answer.reason_phrase}")
    for name in ("location", "link", "retry-after"):
        console.print(f"{name}: {answer.headers.get(name)}", markup=False, highlight=False)
    console.print_json(answer.text)
    expect(answer.status_code == 202, "a submission is answered by 202")
    accepted = answer.json()
    expect(accepted["status"] == "accepted", "the 202 says that the job is accepted")

    job = follow(client, accepted["statusUrl"])
    expect(job["status"] == "completed", f"the job ended as {job['status']}: {job['error']}")
    result = client.get(accepted["resultUrl"]).json()
    expect(result == job["result"], "the result has a URL of its own")

    file = folder / Path(result["download_url"]).name
    with client.stream("GET", result["download_url"]) as download, file.open("wb") as target:
        for chunk in download.iter_bytes():
            target.write(chunk)
    rows = count_rows(file)
    expect(file.stat().st_size == result["size"], "the file has the size the result tells")
    expect(rows == result["rows"], "the file has the rows the result tells")
    console.print(f"[green]{file}[/] has {rows:,} rows.")


def follow(client: httpx2.Client, status_url: str) -> dict[str, Any]:
    """Poll as `Retry-After` asks, draw the progress, and return the document of the ended job."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    patience = time.monotonic() + PATIENCE_SECONDS
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("pending", total=100)
        while True:
            answer = client.get(status_url)
            expect(answer.status_code == 200, f"a status is answered by {answer.status_code}")
            job: dict[str, Any] = answer.json()
            progress.update(bar, description=job["status"], completed=job["progress"])
            if job["status"] in {"completed", "failed", "cancelled"}:
                return job
            expect(time.monotonic() < patience, "the job takes too long")
            expect("retry-after" in answer.headers, "an unfinished job has a Retry-After")
            time.sleep(int(answer.headers["retry-after"]))


def count_rows(file: Path) -> int:
    """Count the rows of a CSV (without its header) or JSON Lines file."""
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".csv":
            return sum(1 for _ in csv.DictReader(lines))
        return sum(1 for line in lines if json.loads(line))


def go_on_serving(url: str) -> None:
    """Print what to try, and wait for Ctrl-C."""
    console.print("\nThe server goes on. In another terminal:\n")
    body = '{"format": "jsonl", "category": "Lu"}'
    for line in (
        f"curl -i {url}/api/exports -H 'Content-Type: application/json' -d '{body}'",
        f"curl -i {url}/api/jobs/JOB_ID",
        f"curl -i {url}/api/jobs/JOB_ID/result",
        f"curl -i -X POST {url}/api/jobs/JOB_ID/cancel",
    ):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nIts API in a browser: {url}/docs\nCtrl-C ends it.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("Bye.")


if __name__ == "__main__":
    sys.exit(main())
