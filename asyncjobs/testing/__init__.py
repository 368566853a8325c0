"""What people who write stores and dispatchers test with. Needs pytest.

from asyncjobs.testing import StoreConformance

class TestMyStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path):
        return MyStore(tmp_path / "jobs")
"""

import pytest

# Before the import, so that the suites' assertions explain themselves in a third party's run, too.
pytest.register_assert_rewrite(
    "asyncjobs.testing.dispatcher_conformance",
    "asyncjobs.testing.power_conformance",
    "asyncjobs.testing.store_conformance",
)

from asyncjobs.testing.clocks import LoopClock, ManualClock  # noqa: E402
from asyncjobs.testing.dispatcher_conformance import (  # noqa: E402
    BRISK,
    DispatcherConformance,
    KillableWorkerPool,
    PriorityConformance,
    WorkerLossConformance,
    WorkerPool,
)
from asyncjobs.testing.faults import Fate, Faults, FaultyStore, StoreCall  # noqa: E402
from asyncjobs.testing.power_conformance import (  # noqa: E402
    ListingConformance,
    StoreClockConformance,
)
from asyncjobs.testing.proxies import TcpProxy  # noqa: E402
from asyncjobs.testing.samples import sample_job  # noqa: E402
from asyncjobs.testing.store_conformance import (  # noqa: E402
    SharingConformance,
    StoreConformance,
)

__all__ = [
    "BRISK",
    "DispatcherConformance",
    "Fate",
    "Faults",
    "FaultyStore",
    "KillableWorkerPool",
    "ListingConformance",
    "LoopClock",
    "ManualClock",
    "PriorityConformance",
    "SharingConformance",
    "StoreCall",
    "StoreClockConformance",
    "StoreConformance",
    "TcpProxy",
    "WorkerLossConformance",
    "WorkerPool",
    "sample_job",
]
