"""Tests that every engine passes, on each kind of its workers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from anyio import to_thread

from asyncjobs import AsyncJobs, JobContext, JobStatus
from asyncjobs.core.submission import EnqueueOptions
from asyncjobs.errors import ConfigurationError
from asyncjobs.testing import BRISK, DispatcherConformance, WorkerLossConformance, sample_job
from asyncjobs.testing.dispatcher_handlers import began, register, release
from tests.conftest import Serve, ValkeyServer
from tests.engines.conftest import Launch
from tests.engines.engine import (
    ROOT,
    Engine,
    EngineWorkers,
    Sent,
    Urls,
    WorkerProcesses,
)
from tests.waiting import until


class OnWorkers:
    """Runs the suites of `asyncjobs.testing` on the engine's workers."""

    @pytest.fixture
    def workers(self, engine: Engine, urls: Urls, processes: WorkerProcesses) -> EngineWorkers:
        return EngineWorkers(engine, urls, processes)


@pytest.mark.anyio
class EngineConformance(OnWorkers, DispatcherConformance, WorkerLossConformance):
    """Tests for all engines."""

    async def test_a_message_holds_a_namespace_and_a_job_id_only(
        self, engine: Engine, own_urls: Urls
    ) -> None:
        job = sample_job(payload_json=b'"secret"', user_id="ada")
        async with engine.dispatcher(own_urls.broker, namespace="shop") as dispatcher:
            await dispatcher.dispatch([job])
        message = {"namespace": "shop", "id": job.id}
        assert await engine.sent(own_urls.broker, engine.default_queue) == [
            Sent(engine.task_name("shop"), message, engine.settings)
        ]

    async def test_the_queue_of_the_options_overrides_that_of_the_policy(
        self, engine: Engine, own_urls: Urls
    ) -> None:
        jobs = {
            engine.default_queue: sample_job(),
            "policy": sample_job(queue="policy"),
            "options": sample_job(type="optional", queue="policy"),
        }
        options = {"optional": engine.options(queue="options")}
        async with engine.dispatcher(own_urls.broker, options=options) as dispatcher:
            await dispatcher.dispatch([*jobs.values()])
        for queue, job in jobs.items():
            [sent] = await engine.sent(own_urls.broker, queue)
            assert sent.message["id"] == job.id

    async def test_jobs_are_accepted_during_an_outage_of_the_broker_and_sent_after_it(
        self, engine: Engine, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        server: ValkeyServer = await to_thread.run_sync(serve)
        await to_thread.run_sync(server.kill)
        jobs = AsyncJobs("memory://", dispatcher=engine.dispatcher(server.url), settings=BRISK)
        register(jobs)
        async with jobs:
            accepted = {str((await jobs.enqueue("echo", number)).id) for number in range(5)}
            assert caplog.text.count("could not be dispatched") == 1
            await to_thread.run_sync(server.start)

            async def all_are_sent() -> bool:
                sent = await engine.sent(server.url, engine.default_queue)
                return {message.message["id"] for message in sent} == accepted

            await until(all_are_sent)
            await until(lambda: "can be dispatched again" in caplog.text)
        assert caplog.text.count("can be dispatched again") == 1

    async def test_a_job_without_handler_is_sent_again_while_workers_answer(
        self, workers: EngineWorkers
    ) -> None:
        """As in a rolling deploy that updates the web processes first."""
        async with workers.opened() as jobs:

            @jobs.handler("of the next release")
            async def work(_job: JobContext) -> None: ...

            handle = await jobs.enqueue(work)

            async def was_left_thrice() -> bool:
                # Written when a worker leaves it to others, and when it is sent again.
                return (await jobs.find(handle.id)).revision > 6

            await until(was_left_thrice)
            assert (await handle.cancel()).status is JobStatus.CANCELLED

    async def test_the_engine_only_keeps_results_of_the_applications_own_tasks(
        self, engine: Engine, urls: Urls, workers: EngineWorkers, tmp_path: Path
    ) -> None:
        before = await engine.results(urls.broker)
        async with workers.opened() as jobs:
            for name, payload in (
                ("echo", 1),
                ("refuse", tmp_path / "refused"),
                ("second_time", tmp_path / "retried"),
            ):
                await (await jobs.enqueue(name, payload)).wait()
            own = await engine.run_own_task(urls.broker)

            async def only_its_own_is_kept() -> bool:
                return await engine.results(urls.broker) - before == {own}

            await until(only_its_own_is_kept)

    async def test_a_stopped_worker_finishes_its_job(
        self, engine: Engine, own_urls: Urls, launch: Launch, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        with launch(own_urls) as processes:
            workers = EngineWorkers(engine, own_urls, processes)
            async with workers.opened() as jobs:
                handle = await jobs.enqueue("hold", path)
                await until(lambda: began(path) == 1)
                stopping = asyncio.create_task(asyncio.to_thread(processes.stop))
                await until(lambda: processes.has_logged(engine.stopping))
                release(path)
                assert await stopping == 0
                done = await handle.wait()
        assert (done.status, done.result, done.losses) == (JobStatus.COMPLETED, 1, 0)


@pytest.mark.anyio
class GiveBackConformance:
    """Tests for engines whose workers can stop before their jobs have ended."""

    async def test_a_stopped_worker_releases_its_job(
        self, engine: Engine, own_urls: Urls, launch: Launch, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        with launch(own_urls, give_back=True) as processes:
            workers = EngineWorkers(engine, own_urls, processes)
            async with workers.opened() as jobs:
                handle = await jobs.enqueue("hold", path)
                await until(lambda: began(path) == 1)
                await to_thread.run_sync(engine.stop, processes)
                given_back = await jobs.find(handle.id)
                assert (given_back.status, given_back.losses) == (JobStatus.PENDING, 0)
                # Several times if another stopping process has started it again.
                starts = began(path)
                processes.start()
                await until(lambda: began(path) > starts)
                release(path)
                done = await handle.wait()
        assert (done.status, done.result, done.losses) == (JobStatus.COMPLETED, began(path), 0)


@pytest.mark.anyio
class TimeLimitConformance(OnWorkers):
    """Tests for engines whose application can limit the time of all tasks, as the tests' does."""

    async def test_a_time_limit_of_the_application_does_not_end_a_job(
        self, workers: EngineWorkers, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            handle = await jobs.enqueue("hold", path)
            await until(lambda: began(path) == 1)
            beyond_the_limit = EnqueueOptions(run_at=timedelta(seconds=1.5))
            await (await jobs.enqueue("echo", 1, options=beyond_the_limit)).wait()
            release(path)
            done = await handle.wait()
        assert (done.status, done.attempt, began(path)) == (JobStatus.COMPLETED, 1, 1)


@pytest.mark.anyio
class AsyncClientConformance:
    """Tests for engines with an asyncio client, which is opened on demand."""

    @pytest.mark.parametrize("how", ["loops", "fork"])
    async def test_a_dispatcher_works_in_another_event_loop_and_in_a_forked_child(
        self, engine: Engine, own_urls: Urls, how: str
    ) -> None:
        """The child process does not use its parent's connections."""
        arguments = (engine.__module__, engine.kind, own_urls.broker, how)
        script = f"from tests.engines.apps.reopen import main; main{arguments}"
        command = [sys.executable, "-W", "error", "-c", script]
        done = await to_thread.run_sync(
            lambda: subprocess.run(
                command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
            )
        )
        assert (done.returncode, done.stderr) == (0, "")
        sent = await engine.sent(own_urls.broker, engine.default_queue)
        # A message may be sent twice if the first send took long.
        assert len({message.message["id"] for message in sent}) == 150

    @pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
    async def test_a_dispatcher_needs_asyncio(self, engine: Engine) -> None:
        with pytest.raises(ConfigurationError, match="needs asyncio"):
            await engine.dispatcher("redis://localhost").__aenter__()
