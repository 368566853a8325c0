"""The tests of a run: `pytest`, `pytest -m quick`, `pytest -m thorough`; and the quarantine.

`quick` is a part of the default run: tests in memory and on asyncio, without servers and without
other processes. `thorough` tests are slow. Both are lists of paths below this folder.

A test in `quarantine.txt` is known to be flaky, and its fix takes longer. Only
`pytest -m quarantined` runs it; each run reports the size of the quarantine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
QUARANTINE = HERE / "quarantine.txt"

THOROUGH = (
    "adapters/test_fuzz.py",
    "benchmarks/test_run.py",
    "browser/",
    "chaos/",
    "clients/test_azure_operations.py",
    "clients/test_follow_command.py",
    "clients/test_follow_output.py",
    "clients/test_node.py",
    "clients/test_output.py",
    "clients/test_python_client.py",
    "containment/test_hooks.py",
    "containment/test_worker",
    "docs/test_curl_lines.py",
    "docs/test_typed_pages.py",
    "engines/",
    "examples/test_celery_app.py",
    "examples/test_chat_app.py",
    "examples/test_chat_app_with_ai.py",
    "examples/test_demo.py::test_the_demo_exports_the_whole",
    "examples/test_demo.py::test_the_demo_fails",
    "examples/test_openapi.py",
    "execution/test_failures.py::TestProcesses::test_the_error_of_a_dead_process",
    "execution/test_failures.py::TestProcesses::test_the_traceback_of_the_other_process",
    "javascript/",
    "otel/test_alerts.py",
    "records/test_change_feed.py::test_garbage_collection_is_safe_at_any_moment",
    "servers/test_asgi_shutdown.py",
    "servers/test_crash.py",
    "servers/test_streams_shutdown.py",
    "servers/test_wsgi_servers.py",
    "simulation/test_asyncio.py",
    "simulation/test_schedules.py",
    "simulation/test_seeds.py",
    "simulation/test_simulation.py",
    "stores/postgres/test_plans.py",
    "stores/postgres/test_pooler.py",
    "stores/redis/test_cluster.py",
    "stores/redis/test_failover.py",
    "stores/test_outputs_agree.py",
    "stores/test_stores_agree.py",
    "testing/test_dispatching.py",
    "workers/test_shared_schedules.py",
    "workers/test_worker_processes.py",
)

QUICK = (
    "clients/test_client_rules.py",
    "core/",
    "dispatchers/",
    "execution/",
    "http/",
    "records/",
    "runtime/",
    "test_declarations",
    "test_queue",
)

#: Tests below the paths of `QUICK` that start a process, or take more than half a second.
NOT_QUICK = (
    "core/test_lifecycle_machine.py",
    "dispatchers/test_engine_push.py::test_a_missing_engine_is_named_with_its_extra",
    "dispatchers/test_found.py",
    "execution/test_executor.py::test_an_attempt_ends_with_its_lease_if_the_store_stays_away",
    "execution/test_executor.py::test_a_process_can_exit_although_a_thread_never_ends",
    "execution/test_executor.py::test_a_thread_that_outlives_a_shutdown_is_not_cancelled_early",
    "execution/test_failures.py::TestProcesses::test_the_error_of_a_dead_process",
    "execution/test_failures.py::TestProcesses::test_the_traceback_of_the_other_process",
    "execution/test_subprocesses.py",
    "records/test_change_feed.py::test_garbage_collection_is_safe_at_any_moment",
    "runtime/test_dispatch.py::test_a_waiting_job_is_dispatched_again_at_doubling_intervals",
)

#: Tests that use one of these fixtures need a server.
SERVERS = {"postgres", "redis_url", "serve", "serve_module"}

_ENTRY = re.compile(r"(?P<test>\S+::\S.*?)\s+#\s*(?P<reason>\S.*)")


def quarantined() -> dict[str, str]:
    """Return the reason by test id; a line without a reason is an error."""
    entries: dict[str, str] = {}
    for line in QUARANTINE.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            entry = _ENTRY.fullmatch(line.strip())
            if entry is None:
                raise pytest.UsageError(f"{QUARANTINE.name}: not `<test id>  # <reason>`: {line!r}")
            entries[entry["test"]] = entry["reason"]
    return entries


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests, and deselect those in quarantine."""
    reasons = quarantined()
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        _, separator, test = item.nodeid.partition("::")
        name = _below_here(item.path) + separator + test
        if name.startswith(THOROUGH):
            item.add_marker("thorough")
        elif is_quick(item, name):
            item.add_marker("quick")
        whole, _, _ = name.partition("[")
        if name in reasons or whole in reasons:
            item.add_marker("quarantined")
            left.append(item)
        else:
            kept.append(item)
    if left and "quarantined" not in config.option.markexpr:
        items[:] = kept
        config.hook.pytest_deselected(items=left)


def is_quick(item: pytest.Item, name: str) -> bool:
    """Return whether a test is on the quick paths, in memory, on asyncio, without a server."""
    if not name.startswith(QUICK) or name.startswith(NOT_QUICK):
        return False
    if not SERVERS.isdisjoint(getattr(item, "fixturenames", ())):
        return False
    call = getattr(item, "callspec", None)
    values: dict[str, Any] = {} if call is None else call.params
    return values.get("anyio_backend") in {None, "asyncio"} and values.get("store_kind") in {
        None,
        "memory",
    }


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only the quick paths for `-m quick`: other folders import frameworks and engines."""
    if config.option.markexpr != "quick" or not collection_path.is_relative_to(HERE):
        return None
    path = _below_here(collection_path)
    if collection_path.is_dir():
        path += "/"
    inside = path == "./" or path.startswith(QUICK) or any(one.startswith(path) for one in QUICK)
    return None if inside or path.endswith("conftest.py") else True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the quarantine in each run."""
    reasons = quarantined()
    terminalreporter.write_line(f"quarantined: {len(reasons)}")
    for test, reason in reasons.items():
        terminalreporter.write_line(f"  {test}: {reason}")


def _below_here(path: Path) -> str:
    return path.relative_to(HERE).as_posix() if path.is_relative_to(HERE) else path.as_posix()
