"""Take the pictures of the README.

    python docs/pictures.py

A real server, its status page in Chromium, and `asyncjobs watch` in a terminal.
Needs the extra `test`, Chromium, and Linux or macOS.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import httpx2
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import mount

FOLDER = Path(__file__).parent / "pictures"
COLUMNS, LINES = 108, 12
# Each job stops at this progress.
STEPS = {
    "export_customers": (144_762, 89_751, "rows", "Writing customers.csv"),
    "resize_photos": (48, 31, "photos", "IMG_2041.jpg"),
    "monthly_report": (12, 3, "sections", "Revenue by region"),
}


def make_app(store: str) -> FastAPI:
    """Return an app with jobs that never end by themselves."""
    jobs = AsyncJobs(store)

    def add(name: str, total: int, at: int, unit: str, message: str) -> None:
        @jobs.handler(name, estimate=180)
        async def work(job: JobContext) -> None:
            job.progress(100 * at / total, message, current=at, total=total, unit=unit)
            await anyio.sleep_forever()

    for name, step in STEPS.items():
        add(name, *step)
    app = FastAPI()
    mount(app, jobs, prefix="/api/jobs")

    @app.post("/start")
    async def start() -> str:
        first, *_ = [(await jobs.enqueue(name)).id for name in STEPS]
        return first

    return app


@contextmanager
def serving(app: FastAPI) -> Generator[str]:
    """Serve the app inside the block; yield its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def take_page(url: str) -> None:
    """Write a picture of the status page."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 760, "height": 430}, device_scale_factor=2, locale="en-GB"
        )
        page.goto(url)
        page.get_by_text("Writing customers.csv").wait_for()
        page.wait_for_timeout(12_000)  # a job that has just begun shows no time
        page.screenshot(path=FOLDER / "status-page.png")
        browser.close()


def take_watch(store: str) -> None:
    """Write a picture of `asyncjobs watch`, from what it writes to a terminal."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "asyncjobs", "watch", "--store", store]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    watching = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    written = b""
    end = time.monotonic() + 6
    while time.monotonic() < end:
        if select.select([main], [], [], 0.2)[0]:
            written += os.read(main, 65536)
    watching.send_signal(signal.SIGINT)
    watching.wait()
    # Each frame begins by clearing the one before.
    frames = re.split(r"\r?(?:\x1b\[1A)?\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", written.decode())
    whole = [frame for frame in frames if all(name in frame for name in STEPS)]
    console = Console(record=True, width=COLUMNS, file=StringIO())
    console.print("$ asyncjobs watch")
    console.print(Text.from_ansi(whole[-1].replace("\r", "").rstrip()))
    drawn = console.export_svg(title="asyncjobs watch")
    # The fonts of the reader, none from the network.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    (FOLDER / "watch.svg").write_text(drawn, encoding="utf-8")


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/jobs.db"
        with serving(make_app(store)) as url, httpx2.Client(base_url=url) as client:
            job_id: Any = client.post("/start").json()
            take_page(f"{url}/api/jobs/{job_id}")
            take_watch(store)


if __name__ == "__main__":
    main()
