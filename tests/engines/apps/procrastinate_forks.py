"""A process that has told Procrastinate of a job, and forks one that tells it of another."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from asyncjobs import AsyncJobs
from asyncjobs.portal import portal_for

jobs: AsyncJobs = import_module("procrastinate_worker").jobs


def enqueue(number: int) -> None:
    portal_for(jobs).call(jobs.enqueue, "steps", number)


enqueue(1)
if (child := os.fork()) == 0:
    enqueue(2)
    portal_for(jobs).close()
    os._exit(0)
status = os.waitpid(child, 0)[1]
enqueue(3)
portal_for(jobs).close()
sys.exit(os.waitstatus_to_exitcode(status))
