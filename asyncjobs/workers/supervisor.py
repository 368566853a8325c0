"""The supervisor of several worker processes: starts them, restarts dead ones and stops all.

It stops them over their standard input, not by signals. A terminal and systemd send a signal to
every process at once; if the supervisor passed it on, a worker would count two signals and hurry.
The end of the input means that the supervisor has ended.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import Process

from asyncjobs.records.logging import log
from asyncjobs.workers.health import (
    HEARTBEAT_SECONDS,
    read_health,
    remove_heartbeat,
    write_heartbeat,
)
from asyncjobs.workers.shutdown import StopLevel, StopRequest

#: A worker that exits with this code is misconfigured: a restart would not help.
CONFIGURATION_ERROR = 2

_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
#: After running this long, a worker is restarted after the first pause again.
_SETTLED_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """The workers of one supervisor: their command, and the health file of each."""

    command: Sequence[str]
    health_files: Sequence[Path]
    health_file: Path | None = None


async def supervise(group: WorkerGroup) -> int:
    """Keep the workers running until the process is stopped; return the exit code."""
    return await _Supervisor(group).run()


class _Supervisor:
    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self._stop = StopRequest()
        self._running: dict[Path, Process] = {}
        self._exit_code = 0

    async def run(self) -> int:
        with self._stop.following_signals():
            return await self._run()

    async def _run(self) -> int:
        async with anyio.create_task_group() as background:
            background.start_soon(self._pass_on, StopLevel.DRAIN)
            background.start_soon(self._pass_on, StopLevel.HURRY)
            if self._group.health_file is not None:
                background.start_soon(self._write_group_health, self._group.health_file)
            async with anyio.create_task_group() as workers:
                for file in self._group.health_files:
                    workers.start_soon(self._keep, file)
            background.cancel_scope.cancel()
        return self._exit_code

    def _stopping(self) -> bool:
        return self._stop.level is not StopLevel.NONE

    async def _keep(self, file: Path) -> None:
        """Run one worker; start another one when it has ended."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping():
            started_at = anyio.current_time()
            code = await self._run_one(file)
            if self._stopping():
                return
            if code == CONFIGURATION_ERROR:
                self._exit_code = code
                self._stop.request(StopLevel.DRAIN)
                return
            if anyio.current_time() - started_at > _SETTLED_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.warning("A worker has ended (exit code %s); a new one starts in %s s", code, pause)
            with anyio.move_on_after(pause):
                await self._stop.wait_for(StopLevel.DRAIN)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _run_one(self, file: Path) -> int:
        process = await anyio.open_process(
            [*self._group.command, "--supervised", "--health-file", str(file)],
            stdin=subprocess.PIPE,
            stdout=None,
            stderr=None,
            start_new_session=os.name != "nt",
        )
        async with process:
            self._running[file] = process
            await self._send_level(process)  # it may have changed during the start
            try:
                return await process.wait()
            finally:
                del self._running[file]
                remove_heartbeat(file)  # a killed worker leaves it behind

    async def _pass_on(self, level: StopLevel) -> None:
        await self._stop.wait_for(level)
        for process in tuple(self._running.values()):
            await self._send_level(process)

    async def _send_level(self, process: Process) -> None:
        if process.stdin is None:
            return
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # the worker has ended
            await process.stdin.send(f"{self._stop.level.name}\n".encode())

    async def _write_group_health(self, file: Path) -> None:
        try:
            while True:
                health = read_health(self._group.health_files)
                if health.live:
                    write_heartbeat(file, "ok" if health.ready else "unavailable")
                await anyio.sleep(HEARTBEAT_SECONDS)
        finally:
            remove_heartbeat(file)
