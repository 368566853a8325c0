"""Hears of the end of transactions that are the application's own.

PostgreSQL tells nobody of a commit; a NOTIFY inside the transaction would, but lets only one commit
at a time. So it is asked, and only while there is something to ask about.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from asyncjobs.core.job import JobId
from asyncjobs.errors import StoreError
from asyncjobs.stores.postgres import statements as sql
from asyncjobs.stores.postgres.links import Links
from asyncjobs.stores.postgres.notices import Notices

log = logging.getLogger("asyncjobs")

# Most transactions end at once; one that is left open must not be asked about all the time.
_SHORTEST, _LONGEST = 0.01, 0.2


class Commits:
    """Tells all processes of what transactions have inserted, soon after they committed."""

    def __init__(self, links: Links, notices: Notices) -> None:
        self._links = links
        self._notices = notices
        self._expected: dict[int, set[JobId]] = {}
        self._pause = _SHORTEST
        self._task: asyncio.Task[None] | None = None

    def expect(self, transaction: int, ids: Sequence[JobId]) -> None:
        """Tell of these jobs when the transaction of that number has committed."""
        if not ids:
            return
        self._expected.setdefault(transaction, set()).update(ids)
        self._pause = _SHORTEST
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ask no more: whose transaction is still open will be found by polling."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        try:
            while self._expected:
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, _LONGEST)
                await self._look()
        except StoreError as error:
            # After a failover its numbers may mean nothing; workers poll anyway.
            log.debug("The end of transactions was not heard of: %s", error)
            self._expected.clear()
        finally:
            self._task = None

    async def _look(self) -> None:
        asked = list(self._expected)
        for number, fate in await self._links.use(lambda db: db.rows(sql.FATES, asked)):
            if fate != "in progress":
                ids = self._expected.pop(number)
                if fate != "aborted":
                    self._notices.tell(ids, here=True)
