"""Celery's workers keep the rules of dispatchers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

from asyncjobs.dispatchers.celery import CeleryDispatcher
from asyncjobs.testing import DispatcherConformance, WorkerLossConformance
from tests.engines.conftest import Launch
from tests.engines.fleets import Fleet, FleetCrew

WORKER = ("-m", "celery", "-A", "celery_worker:app", "worker", "--loglevel", "INFO")
LONELY = ("--without-mingle", "--without-gossip", "--without-heartbeat")


@pytest.fixture(scope="module", params=["prefork", "threads"])
def fleet(launch: Launch, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with launch(*WORKER, "--pool", request.param, "--concurrency", "2", *LONELY) as started:
        yield started


class TestCelery(DispatcherConformance, WorkerLossConformance):
    @pytest.fixture
    def crew(self, fleet: Fleet, shared_store: str, broker: str) -> FleetCrew:
        return FleetCrew(shared_store, CeleryDispatcher(Celery("tests", broker=broker)), fleet)
