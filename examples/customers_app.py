"""Work that people recognise: `uvicorn --app-dir examples customers_app:app`.

Each customer has exports with a title, a tag and a file to download, batches of invoices, and a
schedule. The same code runs on every store: set CUSTOMERS_STORE to sqlite:///customers.db,
postgresql://... or redis://...
"""

import os
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.responses import Response
from pydantic import BaseModel, Field

from asyncjobs import AsyncJobs, Batch, EnqueueOptions, JobContext, JobFailed
from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount

STORE = os.environ.get("CUSTOMERS_STORE", "sqlite:///customers.db")
FILES = os.environ.get("CUSTOMERS_FILES", "customers-files")

jobs = AsyncJobs(STORE, files=FILES)


class Export(BaseModel):
    """How many rows to export."""

    rows: Annotated[int, Field(ge=1, le=100_000)] = 1000


class Exported(BaseModel):
    """The URL of the file, relative to the status URL, and its number of rows."""

    download_url: str
    rows: int


class Invoice(BaseModel):
    """The number of an invoice; the thirteenth cannot be sent."""

    number: int


@jobs.handler("export", estimate=2)
async def export(cmd: Export, job: JobContext) -> Exported:
    """Write the customer's rows to a file of the job, without keeping them in memory."""

    async def lines() -> AsyncIterator[bytes]:
        async for row in job.track(range(cmd.rows), unit="rows"):
            yield f"{row},{row * row}\n".encode()

    await job.save_file("squares.csv", lines(), media_type="text/csv")
    job.set_metadata({**job.metadata, "rows": cmd.rows})
    return Exported(download_url="files/squares.csv", rows=cmd.rows)


@jobs.handler("invoice")
async def invoice(cmd: Invoice, job: JobContext) -> int:
    """Send one invoice."""
    if cmd.number == 13:
        raise JobFailed("The printer is superstitious.", "printer_refused")
    await anyio.sleep(0.01)  # the slow part
    await job.progress(100)
    return cmd.number


@jobs.handler("statistics")
async def statistics(job: JobContext) -> str:
    """Count, at each tick of the schedule."""
    return f"Statistics of {job.scheduled_at:%H:%M:%S}"


jobs.schedule(
    "statistics", statistics, every=timedelta(seconds=2), options=EnqueueOptions(title="Statistics")
)


def customer(x_customer: Annotated[str | None, Header()] = None) -> str:
    """Return the caller. A real application verifies a session or a token here."""
    if x_customer is None:
        raise HTTPException(401)
    return x_customer


app = FastAPI(title="Customers")
mount(app, jobs, prefix="/api/jobs", identify=customer)


@app.post("/api/exports", status_code=202, response_model=AcceptedDocument)
async def create_export(
    cmd: Export, accept: Accept, name: Annotated[str, Depends(customer)]
) -> Response:
    """Submit an export. It has a title, and `GET /api/jobs?tag=exports` lists it."""
    options = EnqueueOptions(
        title=f"{cmd.rows} rows for {name}", tags=("exports",), metadata={"plan": "basic"}
    )
    return await accept(export, cmd, options=options)


@app.post("/api/invoices", status_code=202, response_model=AcceptedDocument)
async def send_invoices(numbers: list[int], accept: Accept) -> Response:
    """Submit a batch of invoices, which has one status URL."""
    invoices = [Invoice(number=number) for number in numbers]
    options = EnqueueOptions(title=f"{len(numbers)} invoices", tags=("invoices",))
    return await accept(invoice, Batch(invoices), options=options)


@app.get("/api/schedules")
async def schedules() -> list[dict[str, Any]]:
    """List the schedules with their last and next run."""
    found = await jobs.schedules()
    return [{"name": one.name, "last": one.last_at, "next": one.next_at} for one in found]
