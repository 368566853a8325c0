"""What people who write stores and dispatchers test with. Needs pytest.

from asyncjobs.testing import StoreConformance

class TestMyStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path):
        return MyStore(tmp_path / "jobs")
"""

import pytest

# Before the import, so that the suite's assertions explain themselves in a third party's run, too.
pytest.register_assert_rewrite(
    "asyncjobs.testing.storing",
    "asyncjobs.testing.taking",
    "asyncjobs.testing.looking_up",
    "asyncjobs.testing.timekeeping",
    "asyncjobs.testing.dispatching",
    "asyncjobs.testing.priorities",
)

from asyncjobs.testing.clocks import LoopClock, ManualClock  # noqa: E402
from asyncjobs.testing.conformance import StoreConformance  # noqa: E402
from asyncjobs.testing.crews import BRISK, Crew, MortalCrew  # noqa: E402
from asyncjobs.testing.dispatching import (  # noqa: E402
    DispatcherConformance,
    WorkerLossConformance,
)
from asyncjobs.testing.faults import Call, Fate, Faults, FaultyStore  # noqa: E402
from asyncjobs.testing.looking_up import (  # noqa: E402
    AgingConformance,
    CountingConformance,
    ListingConformance,
)
from asyncjobs.testing.priorities import PriorityConformance  # noqa: E402
from asyncjobs.testing.proxies import TcpProxy  # noqa: E402
from asyncjobs.testing.samples import sample_job  # noqa: E402
from asyncjobs.testing.timekeeping import ClockedConformance  # noqa: E402

__all__ = [
    "BRISK",
    "AgingConformance",
    "Call",
    "ClockedConformance",
    "CountingConformance",
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
    "StoreConformance",
    "TcpProxy",
    "WorkerLossConformance",
    "sample_job",
]
