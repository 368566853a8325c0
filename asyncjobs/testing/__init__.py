"""Tools for testing applications, and conformance suites for stores and dispatchers.

    from asyncjobs.testing import run_jobs

    def test_export():
        with jobs.using("memory://"):
            jobs.sync.enqueue(export, "orders")
            [job] = run_jobs(jobs)

The suites need pytest. Each name is imported when it is used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncjobs.testing.applications import (
        run_jobs,
        run_jobs_async,
        submitted_jobs,
        submitted_jobs_async,
    )
    from asyncjobs.testing.clocks import LoopClock, ManualClock
    from asyncjobs.testing.dispatcher_conformance import (
        BRISK,
        DispatcherConformance,
        KillableWorkerPool,
        PriorityConformance,
        WorkerLossConformance,
        WorkerPool,
    )
    from asyncjobs.testing.faults import Fate, Faults, FaultyStore, StoreCall
    from asyncjobs.testing.files_conformance import FilesConformance
    from asyncjobs.testing.label_conformance import TalliesConformance
    from asyncjobs.testing.output_conformance import OutputStreamsConformance
    from asyncjobs.testing.power_conformance import (
        ApplicationTransaction,
        ChangeNoticesConformance,
        InlineReadsConformance,
        InspectionConformance,
        ListingConformance,
        MigrationScriptConformance,
        StoreClockConformance,
        TransactionsConformance,
    )
    from asyncjobs.testing.proxies import TcpProxy
    from asyncjobs.testing.samples import sample_job
    from asyncjobs.testing.sharing_conformance import SharingConformance
    from asyncjobs.testing.store_conformance import StoreConformance

__all__ = [
    "BRISK",
    "ApplicationTransaction",
    "ChangeNoticesConformance",
    "DispatcherConformance",
    "Fate",
    "Faults",
    "FaultyStore",
    "FilesConformance",
    "InlineReadsConformance",
    "InspectionConformance",
    "KillableWorkerPool",
    "ListingConformance",
    "LoopClock",
    "ManualClock",
    "MigrationScriptConformance",
    "OutputStreamsConformance",
    "PriorityConformance",
    "SharingConformance",
    "StoreCall",
    "StoreClockConformance",
    "StoreConformance",
    "TalliesConformance",
    "TcpProxy",
    "TransactionsConformance",
    "WorkerLossConformance",
    "WorkerPool",
    "run_jobs",
    "run_jobs_async",
    "sample_job",
    "submitted_jobs",
    "submitted_jobs_async",
]

_MODULES = {
    "BRISK": "dispatcher_conformance",
    "ApplicationTransaction": "power_conformance",
    "ChangeNoticesConformance": "power_conformance",
    "DispatcherConformance": "dispatcher_conformance",
    "Fate": "faults",
    "Faults": "faults",
    "FaultyStore": "faults",
    "FilesConformance": "files_conformance",
    "InlineReadsConformance": "power_conformance",
    "InspectionConformance": "power_conformance",
    "KillableWorkerPool": "dispatcher_conformance",
    "ListingConformance": "power_conformance",
    "LoopClock": "clocks",
    "ManualClock": "clocks",
    "MigrationScriptConformance": "power_conformance",
    "OutputStreamsConformance": "output_conformance",
    "PriorityConformance": "dispatcher_conformance",
    "SharingConformance": "sharing_conformance",
    "StoreCall": "faults",
    "StoreClockConformance": "power_conformance",
    "StoreConformance": "store_conformance",
    "TalliesConformance": "label_conformance",
    "TcpProxy": "proxies",
    "TransactionsConformance": "power_conformance",
    "WorkerLossConformance": "dispatcher_conformance",
    "WorkerPool": "dispatcher_conformance",
    "run_jobs": "applications",
    "run_jobs_async": "applications",
    "sample_job": "samples",
    "submitted_jobs": "applications",
    "submitted_jobs_async": "applications",
}

# Before they are imported, so that pytest rewrites the suites' assertions in any test run.
if sys.modules.get("pytest"):
    sys.modules["pytest"].register_assert_rewrite(
        *(
            f"{__name__}.{name}_conformance"
            for name in ("dispatcher", "files", "label", "output", "power", "sharing", "store")
        )
    )

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found
