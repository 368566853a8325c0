"""A Celery app whose pool processes export metrics and spans, as the guide shows."""

from __future__ import annotations

import os
from pathlib import Path

from billiard import current_process
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from prometheus_client import start_http_server

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.celery import CeleryDispatcher
from asyncjobs.otel import instrument
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register

app = Celery("tests", broker=os.environ["BROKER"])
dispatcher = CeleryDispatcher(app)
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
tracers, meters = TracerProvider(), MeterProvider([PrometheusMetricReader()])
spans = Path(os.environ["SPANS"]).open("a")  # noqa: SIM115  # open until the process ends
tracers.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=spans)))
instrument(jobs, tracer_provider=tracers, meter_provider=meters)
dispatcher.register_task(jobs)


@worker_process_init.connect
def show_metrics(**_signal: object) -> None:
    server, _thread = start_http_server(0)
    folder = Path(os.environ["SPANS"]).parent
    number: int = current_process().index  # type: ignore[attr-defined]  # of processes of a pool
    (folder / f"port-{number}").write_text(str(server.server_port))


@worker_process_shutdown.connect
def flush(**_signal: object) -> None:
    tracers.shutdown()
    meters.shutdown()
