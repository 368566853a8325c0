"""Writes the tables and plots of the documentation page from the figures of a run."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.features import KINDS
from benchmarks.figures import Figures, shown
from benchmarks.growth import BATCH, SMALL
from benchmarks.sides.catalogue import ON_ENGINES, STORES

OURS, FLOOR, BARE = "asyncjobs", "floor", "bare"
MARKED = re.compile(
    r"(<!-- benchmarks: (?P<name>\w+) -->\n).*?(<!-- end of the benchmarks -->)", re.DOTALL
)
NAMES = {"memory": "memory", "sqlite": "SQLite", "postgres": "PostgreSQL", "redis": "Redis"}
HEADINGS = {**NAMES, "memory": "In memory"}
APPS = {"starlette": "Starlette", "fastapi": "FastAPI", "flask": "Flask"}

STORE_COLUMNS = {
    "submit one after another": "submit, one after another",
    "submit 100 in flight": "submit, 100 in flight",
    "submit batches": "submit, by 500",
    "drain": "drain",
    "read 100 in flight": "read, 100 in flight",
    "latency p50": "latency p50 (ms)",
    "latency p95": "p95 (ms)",
    "CPU of a job": "CPU of a job (us)",
}
BARS = (
    ("submit", "Submitted by 100 callers at once", "jobs per second", "submit 100 in flight"),
    ("drain", "Run by one worker process", "jobs per second", "drain"),
    ("latency", "From submission to result, one job at a time", "ms, median", "latency p50"),
    ("cpu", "Processor time of a job, client and worker", "microseconds", "CPU of a job"),
)
ROUTES = ("POST", "GET completed", "GET unchanged", "GET waiting")
CALLS = ("read 1", f"read {BATCH}", "take 1", f"take {BATCH}", "position of the last")
#: The calls in the plots of growth, with their names in the plots.
PLOTTED = {f"read {BATCH}": "read", f"take {BATCH}": "take", CALLS[-1]: "position"}

Row = Sequence[str]


def rewritten(text: str, figures: Figures, run: Mapping[str, Any]) -> str:
    """Return the page, with the table between each pair of markers replaced."""

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        table = machine(run) if name == "machine" else TABLES[name](figures)
        return f"{found[1]}\n{table}\n\n{found[3]}"

    return MARKED.sub(replace, text)


def machine(run: Mapping[str, Any]) -> str:
    """Describe the run: date, machine and versions."""
    where = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    cores = f"{where['cores']} cores of {where['processor']}, {where['memory_gib']} GiB"
    parts = [f"Recorded on {run['date']}, {_extent(run)}: {cores}, {where['system']}."]
    if run.get("note"):
        parts.append(run["note"])
    for part, later in run.get("later", {}).items():
        parts.append(f"The part `{part}` was recorded on {later['date']}, {_extent(later)}.")
    return "\n\n".join([*parts, f"Versions: {versions}."])


def stores(figures: Figures) -> str:
    """Make a table for each store: its sides, and the ratio of asyncjobs to the floor."""
    tables: list[str] = []
    for store in STORES:
        sides = _sides(figures, "stores", store)
        if not sides:
            continue
        rows = [
            [side, *(_cell(figures, "stores", store, side, name) for name in STORE_COLUMNS)]
            for side in sides
        ]
        for ours in sides:
            if ours.startswith(OURS) and FLOOR in sides:
                ratios = (
                    _ratio(figures, ("stores", store), name, (ours, FLOOR))
                    for name in STORE_COLUMNS
                )
                rows.append([f"**{ours} / floor**", *map(_factor, ratios)])
        head = ["jobs or reads per second", *STORE_COLUMNS.values()]
        tables.append(f"### {HEADINGS[store]}\n\n{_table(head, rows)}")
    return "\n\n".join(tables)


def output(figures: Figures) -> str:
    """Make the table of output: items per second, and the ratio of asyncjobs to each floor."""
    floors = ("floor, a row per item", "floor, a row per batch")
    rows: list[Row] = []
    for subject in _subjects(figures, "output"):
        store, _, batch = subject.partition(", ")
        rate = "items"
        cells = (
            f"{_cell(figures, 'output', subject, floor, rate)}"
            f" ({_factor(_ratio(figures, ('output', subject), rate, (OURS, floor)))})"
            for floor in floors
        )
        ours = _cell(figures, "output", subject, OURS, rate)
        rows.append([NAMES[store], f"{int(batch):,}", ours, *cells])
    return _table(["items per second", "items in a batch", OURS, *floors], rows)


def features(figures: Figures) -> str:
    """Make the tables of kinds of jobs, and their ratios to plain jobs."""
    found = _subjects(figures, "features")
    tables: list[str] = []
    for measure, head in (
        ("accepted", "accepted jobs per second"),
        ("run", "run jobs per second"),
        ("CPU of a job", "CPU of a job (us)"),
    ):
        rows: list[Row] = []
        for name, kind in KINDS.items():
            cells = [_cell(figures, "features", store, name, measure) for store in found]
            if kind.beside != name:
                pair = (name, kind.beside)
                ratios = (_ratio(figures, ("features", store), measure, pair) for store in found)
                cells = [f"{cell} ({_factor(it)})" for cell, it in zip(cells, ratios, strict=True)]
            rows.append([name, *cells])
        tables.append(_table([head, *(NAMES[store] for store in found)], rows))
    return "\n\n".join(tables)


def http(figures: Figures) -> str:
    """Make the tables of routes: requests per second and CPU, and their ratios to a bare route."""
    heads = ("`POST`, 202", "`GET`, completed", "`GET`, 304", "`GET`, waiting")
    tables: list[str] = []
    for what, suffix in (("requests per second", ""), ("CPU of a request (us)", ", CPU")):
        rows: list[Row] = []
        for subject in _subjects(figures, "http"):
            cells = [
                f"{_cell(figures, 'http', subject, OURS, route + suffix)}"
                f" ({_factor(_ratio(figures, ('http', subject), route + suffix, (OURS, BARE)))})"
                for route in ROUTES
            ]
            bare = (_cell(figures, "http", subject, BARE, one + suffix) for one in ROUTES[:2])
            rows.append([_app(subject), *cells, " / ".join(bare)])
        tables.append(_table([what, *heads, "bare `POST` / `GET`"], rows))
    return "\n\n".join(tables)


def watchers(figures: Figures) -> str:
    """Make the table of watchers, by their number."""
    measures = {
        "memory of each": "memory of each (KiB)",
        "CPU of each event": "CPU of each event (us)",
        "p50": "p50 (ms)",
        "p95": "p95 (ms)",
    }
    rows = [
        [f"{int(count):,}", side, *(_cell(figures, "watchers", count, side, m) for m in measures)]
        for count in _subjects(figures, "watchers")
        for side in _sides(figures, "watchers", count)
    ]
    return _table(["watchers", "", *measures.values()], rows)


def growth(figures: Figures) -> str:
    """Make the table of stored and waiting jobs: milliseconds, and the ratio to a small store."""
    rows: list[Row] = []
    for subject in _subjects(figures, "growth"):
        store, _, kind = subject.partition(", ")
        if kind == "processes":
            continue
        for size in _sides(figures, "growth", subject):
            cells = (
                f"{_cell(figures, 'growth', subject, size, call)}"
                f" ({_cell(figures, 'growth', subject, size, f'{call}, of {SMALL}')})"
                for call in CALLS
            )
            rows.append([NAMES[store], f"{int(size):,} {kind}", *cells])
    return _table(["store", "jobs", *CALLS], rows)


def processes(figures: Figures) -> str:
    """Make the table of worker processes."""
    found = [one for one in _subjects(figures, "growth") if one.endswith("processes")]
    numbers = _sides(figures, "growth", found[0]) if found else []
    rows = [
        [
            NAMES[subject.partition(",")[0]],
            *(_cell(figures, "growth", subject, number, "drain") for number in numbers),
        ]
        for subject in found
    ]
    return _table(["jobs per second", *(_plural(number) for number in numbers)], rows)


def engines(figures: Figures) -> str:
    """Make the table of engines: the engine's own task, and an asyncjobs job on it."""
    rows = [
        [
            f"{engine}{'' if engine != 'Procrastinate' else ' (keeps no result)'}",
            *(
                f"{_cell(figures, 'engines', engine, 'own', measure)} / "
                f"{_cell(figures, 'engines', engine, OURS, measure)}"
                f" ({_factor(_ratio(figures, ('engines', engine), measure, (OURS, 'own')))})"
                for measure in ("CPU of a job", "drain", "latency p50")
            ),
        ]
        for engine in ON_ENGINES
        if _sides(figures, "engines", engine)
    ]
    return _table(["own / ours (ratio)", "CPU (us)", "drain (jobs/s)", "latency p50 (ms)"], rows)


def hooks(figures: Figures) -> str:
    """Make the table of hooks and telemetry: CPU, and the ratio to a queue without."""
    found = _subjects(figures, "hooks")
    kinds = _sides(figures, "hooks", found[0]) if found else []
    rows = [
        [
            kind,
            *(
                f"{_cell(figures, 'hooks', store, kind, 'CPU of a job')}"
                f" ({_factor(_ratio(figures, ('hooks', store), 'CPU of a job', (kind, kinds[0])))})"
                for store in found
            ),
        ]
        for kind in kinds
    ]
    return _table(["CPU of a job (us)", *(NAMES[store] for store in found)], rows)


def clients(figures: Figures) -> str:
    """Make the table of clients and transports."""
    measures = {
        "requests": "requests",
        "body read": "bytes read",
        "known after": "known after (ms)",
    }
    rows = [
        [subject, side, *(_cell(figures, "clients", subject, side, m) for m in measures)]
        for subject in _subjects(figures, "clients")
        if subject != "import"
        for side in _sides(figures, "clients", subject)
    ]
    return _table(["", "client, transport", *measures.values()], rows)


TABLES: Mapping[str, Callable[[Figures], str]] = {
    one.__name__: one
    for one in (
        *(stores, features, output, http, watchers),
        *(growth, processes, engines, hooks, clients),
    )
}


def draw(folder: Path, figures: Figures) -> None:
    """Write the plots that have figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in drawn(figures).items():
        (folder / f"{name}.svg").write_text(plot, encoding="utf-8")


def drawn(figures: Figures) -> dict[str, str]:
    """Return the plots by name."""
    found = {
        name: plots.bars(title, unit, groups)
        for name, title, unit, measure in BARS
        if (groups := _groups(figures, "stores", measure))
    }
    if groups := _groups(figures, "engines", "CPU of a job"):
        found["engines"] = plots.bars(
            "Processor time of a job", "microseconds, client and worker", groups
        )
    if routes := {
        _app(subject): {
            f"{OURS}, {route}": _ratio(figures, ("http", subject), route, (OURS, BARE)) or 0.0
            for route in ROUTES
        }
        for subject in _subjects(figures, "http")
    }:
        title = "Requests per second, of a bare route of the same app"
        found["http"] = plots.bars(title, "1 is the bare route", routes)
    for name, title, measure, unit in (
        ("watchers-memory", "Memory of each watcher", "memory of each", "KiB"),
        ("watchers-delay", "A change is known to 95 in 100 watchers", "p95", "ms after the call"),
    ):
        if series := _by_size(figures, "watchers", measure):
            found[name] = plots.lines(title, unit, "watchers", series)
    for kind in ("stored", "waiting"):
        if series := _ratios_by_size(figures, kind):
            title, axis = f"Calls of a store with {kind} jobs", f"{kind} jobs"
            found[f"growth-{kind}"] = plots.lines(
                title, f"time, of a store with {SMALL:,} jobs", axis, series
            )
    return found


# selections of figures for tables and plots


def _subjects(figures: Figures, part: str) -> list[str]:
    return list(dict.fromkeys(one.subject for one in figures.of(part)))


def _sides(figures: Figures, part: str, subject: str) -> list[str]:
    return list(dict.fromkeys(one.side for one in figures.of(part, subject)))


def _groups(figures: Figures, part: str, measure: str) -> dict[str, dict[str, float]]:
    return {
        NAMES.get(subject, subject): {
            one.side: one.value for one in figures.of(part, subject) if one.measure == measure
        }
        for subject in _subjects(figures, part)
    }


def _by_size(figures: Figures, part: str, measure: str) -> dict[str, plots.Points]:
    """Return a series for each side if there are at least two sizes; the subjects are the sizes."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in figures.of(part):
        if one.measure == measure:
            found.setdefault(one.side, []).append((float(one.subject), one.value))
    return {side: points for side, points in found.items() if len(points) > 1}


def _ratios_by_size(figures: Figures, kind: str) -> dict[str, plots.Points]:
    """Return a series for each store and some calls; the sides are the sizes."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in figures.of("growth"):
        store, _, of = one.subject.partition(", ")
        call, _, small = one.measure.partition(", of ")
        if of == kind and small and call in PLOTTED:
            points = found.setdefault(f"{NAMES[store]}, {PLOTTED[call]}", [])
            points.append((float(one.side), one.value))
    return {name: points for name, points in found.items() if len(points) > 1}


def _ratio(
    figures: Figures, of: tuple[str, str], measure: str, sides: tuple[str, str]
) -> float | None:
    """Return the first side's figure divided by the second's: the median of the rounds' ratios."""
    found = {one.side: one.rounds for one in figures.of(*of) if one.measure == measure}
    if not set(sides) <= set(found):
        return None
    pairs = zip(found[sides[0]], found[sides[1]], strict=False)
    return statistics.median(one / other for one, other in pairs)


def _cell(figures: Figures, part: str, subject: str, side: str, measure: str) -> str:
    for one in figures.of(part, subject):
        if (one.side, one.measure) == (side, measure):
            return shown(one.value)
    return ""


def _factor(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _extent(run: Mapping[str, Any]) -> str:
    rounds = f"medians of {run['rounds']} rounds" if run["rounds"] > 1 else "one round"
    return f"{rounds}, a quick run whose figures mean little" if run["quick"] else rounds


def _app(subject: str) -> str:
    app, _, store = subject.partition(", ")
    return f"{APPS[app]}, {NAMES[store]}"


def _plural(number: str) -> str:
    return f"{number} process" + ("" if number == "1" else "es")


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
