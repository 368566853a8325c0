"""What an engine must do that lets some jobs go before others."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncjobs.testing.crews import Crew
from asyncjobs.testing.dispatching import ended, others_pass, until
from asyncjobs.testing.dispatching_handlers import began, release


@pytest.mark.anyio
class PriorityConformance:
    """What holds where the options of a dispatcher have priorities.

    Override the fixture `crew`: it returns a `Crew` whose dispatcher has been given options by
    which jobs of the type `urgent` are more urgent than those of the type `patient`.
    """

    @pytest.fixture
    def crew(self) -> Crew:
        raise NotImplementedError("Override the fixture `crew`.")

    async def test_what_is_more_urgent_begins_before_what_waited_longer(
        self, crew: Crew, tmp_path: Path
    ) -> None:
        busy = [tmp_path / f"busy{slot}" for slot in range(crew.slots)]
        urgent, patient = tmp_path / "urgent", tmp_path / "patient"
        async with crew.opened() as jobs:
            await others_pass(jobs, crew)  # the workers are there, and nothing comes twice
            submitted = [(await jobs.enqueue("hold", path)).job for path in busy]
            await until(lambda: sum(map(began, busy)) == crew.slots, crew.patience)
            for kind, path in (("patient", patient), ("urgent", urgent), ("patient", patient)):
                submitted.append((await jobs.enqueue(kind, path)).job)
            release(busy[0])  # one slot is free, and whoever gets it holds it
            await until(lambda: began(urgent) + began(patient) > 0, crew.patience)
            assert (began(urgent), began(patient)) == (1, 0)
            for path in (*busy, urgent, patient):
                release(path)
            for job in submitted:
                assert (await ended(jobs, job, crew)).result == 1
        assert began(patient) == 2
