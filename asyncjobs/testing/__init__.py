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
    "asyncjobs.testing.store_conformance", "asyncjobs.testing.dispatcher_conformance"
)

from asyncjobs.testing.clocks import LoopClock, ManualClock  # noqa: E402
from asyncjobs.testing.dispatcher_conformance import (  # noqa: E402
    BRISK,
    Crew,
    DispatcherConformance,
    MortalCrew,
    PriorityConformance,
    WorkerLossConformance,
)
from asyncjobs.testing.faults import Call, Fate, Faults, FaultyStore  # noqa: E402
from asyncjobs.testing.proxies import TcpProxy  # noqa: E402
from asyncjobs.testing.samples import sample_job  # noqa: E402
from asyncjobs.testing.store_conformance import (  # noqa: E402
    ListingConformance,
    StoreClockConformance,
    StoreConformance,
)

__all__ = [
    "BRISK",
    "Call",
    "Crew",
    "DispatcherConformance",
    "Fate",
    "Faults",
    "FaultyStore",
    "ListingConformance",
    "LoopClock",
    "ManualClock",
    "MortalCrew",
    "PriorityConformance",
    "StoreClockConformance",
    "StoreConformance",
    "TcpProxy",
    "WorkerLossConformance",
    "sample_job",
]
