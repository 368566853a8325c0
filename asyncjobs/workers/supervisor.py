"""Several worker processes under one that starts them, restarts those that die, and stops all.

It speaks to them over their standard input, not by signals: a terminal and systemd send a signal
to every process at once, and what came twice would count as the second, the one that hurries. The
end of that input tells a worker that its supervisor is gone.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import Process

from asyncjobs.workers.health import BEAT_SECONDS, read_health, remove, write_beat
from asyncjobs.workers.shutdown import Order, Orders

log = logging.getLogger("asyncjobs")

#: What a worker exits with that would fail again whatever is tried: its own configuration.
USELESS = 2

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
#: One that has lived for so long is restarted as if it had never failed.
_SETTLED_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The workers of one supervisor: each one's command, and the file that shows its health."""

    command: Sequence[str]
    health_files: Sequence[Path]
    health_file: Path | None = None


async def supervise(crew: Crew) -> int:
    """Keep the workers running until told to stop; return what to exit with."""
    return await _Supervisor(crew).run()


class _Supervisor:
    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._orders = Orders()
        self._running: dict[Path, Process] = {}
        self._exit_code = 0

    async def run(self) -> int:
        async with anyio.create_task_group() as around:
            await around.start(self._orders.hear_signals)
            around.start_soon(self._pass_on, Order.DRAIN)
            around.start_soon(self._pass_on, Order.HURRY)
            if self._crew.health_file is not None:
                around.start_soon(self._show_health, self._crew.health_file)
            async with anyio.create_task_group() as workers:
                for file in self._crew.health_files:
                    workers.start_soon(self._keep, file)
            around.cancel_scope.cancel()
        return self._exit_code

    def _stopping(self) -> bool:
        return self._orders.given is not Order.GO_ON

    async def _keep(self, file: Path) -> None:
        """Have one worker in this place, a new one where one has ended."""
        pause = _FIRST_PAUSE
        while not self._stopping():
            began = anyio.current_time()
            code = await self._run_one(file)
            if self._stopping():
                return
            if code == USELESS:
                self._exit_code = code
                self._orders.give(Order.DRAIN)
                return
            if anyio.current_time() - began > _SETTLED_SECONDS:
                pause = _FIRST_PAUSE
            log.warning("A worker has ended (exit code %s); another starts in %s s", code, pause)
            with anyio.move_on_after(pause):
                await self._orders.wait_for(Order.DRAIN)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_one(self, file: Path) -> int:
        process = await anyio.open_process(
            [*self._crew.command, "--supervised", "--health-file", str(file)],
            stdin=subprocess.PIPE,
            stdout=None,
            stderr=None,
            start_new_session=os.name != "nt",
        )
        async with process:
            self._running[file] = process
            await self._tell(process)  # the order may have come while it was started
            try:
                return await process.wait()
            finally:
                del self._running[file]
                remove(file)  # where it had no time to do so itself

    async def _pass_on(self, order: Order) -> None:
        await self._orders.wait_for(order)
        for process in tuple(self._running.values()):
            await self._tell(process)

    async def _tell(self, process: Process) -> None:
        if process.stdin is None:
            return
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # ended by itself
            await process.stdin.send(f"{self._orders.given.name}\n".encode())

    async def _show_health(self, file: Path) -> None:
        try:
            while True:
                health = read_health(self._crew.health_files)
                if health.live:
                    write_beat(file, "ok" if health.ready else "unavailable")
                await anyio.sleep(BEAT_SECONDS)
        finally:
            remove(file)
