"""Change the rules one place at a time and see whether a test fails: `python .ci/mutate.py`.

A change that no test notices is a survivor: a rule without a test, or code without a meaning. The
sample is drawn by a hash of each place, so that an edit elsewhere does not draw another one.
`.ci/survivors.txt` names the survivors that are known: those that are equivalent to the original
are left out of the count, those that are accepted stay in it.

Everything happens in copies of the checkout. This file is also the plugin by which pytest runs the
tests of one change, and no others.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
KNOWN = Path(__file__).with_name("survivors.txt")
PACKAGE = "asyncjobs"

MUTATED = ("core", "records", "execution", "runtime", "http")
#: Templates and scripts for browsers.
LEFT_OUT = ("http/pages.py", "http/scripts.py")

#: Asked if no quick test notices a change.
SLOWER_TESTS = (
    "tests/core",
    "tests/records",
    "tests/execution",
    "tests/runtime",
    "tests/containment",
)
#: Asked about a module that runs in child processes, where coverage does not look.
UNSEEN = {
    f"execution/{name}.py": ("tests/execution/test_subprocesses.py",)
    for name in ("child", "subprocesses")
}

NEEDED_SHARE = 0.9
COPIES = 2
TEST_SECONDS = 30
MUTANT_SECONDS = 600
ELSEWHERE = 2

#: Without a plugin that takes longer to load than the tests of one change take.
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis")
CHOSEN_TESTS = "ASYNCJOBS_MUTATION_TESTS"

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
#: Calls whose removal no test is to notice.
NO_RULES = re.compile(r"(\w+\.)*(log|logger)\.\w+|assert_never")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


Node = ast.expr | ast.stmt
#: A kind of change: its name, and what may be written in the place of which node.
Kind = tuple[str, Sequence[tuple[Node, str]]]


@dataclass(frozen=True)
class Mutant:
    """One change of one place."""

    file: str
    line: int
    text: str
    change: str
    source: str = field(repr=False)
    lines: frozenset[int] = field(repr=False)
    names: frozenset[str] = field(repr=False)

    @property
    def key(self) -> tuple[str, str, str]:
        """What the place and its change are called in the list of known survivors."""
        return self.file, self.text, self.change


# Which changes there are


def mutants(file: str, source: str, seed: int) -> Iterator[tuple[str, Mutant]]:
    """Yield one change for each place of a module, with a hash that ranks it."""
    rows = source.encode().splitlines(keepends=True)
    seen: Counter[str] = Counter()
    for node, lines, names in places(ast.parse(source)):
        for kind, choices in alternatives(node):
            text = rows[node.lineno - 1].decode().strip()
            place = f"{seed} {file} {text} {segment(rows, node)} {kind}"
            seen[place] += 1
            rank = hashlib.sha256(f"{place} {seen[place]}".encode()).hexdigest()
            target, new = choices[int(rank, 16) % len(choices)]
            change = f"{one_line(segment(rows, target))} -> {one_line(new)}"
            changed = splice(rows, target, new)
            yield rank, Mutant(file, node.lineno, text, change, changed, lines, names)


def alternatives(node: Node) -> Iterator[Kind]:
    """Yield the kinds of changes of a node."""
    yield from changed_operators(node)
    yield from changed_values(node)
    yield from changed_statements(node)


def changed_operators(node: Node) -> Iterator[Kind]:
    match node:
        case ast.Compare(ops=operators):
            for index, operator in enumerate(operators):
                changed = copy.deepcopy(node)
                changed.ops[index] = COMPARISONS[type(operator)]()
                yield f"compare {index}", [(node, f"({ast.unparse(changed)})")]
        case ast.BoolOp(op=operator, values=values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield "and/or", [(node, f"({ast.unparse(ast.BoolOp(other, values))})")]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", [(node, f"({ast.unparse(operand)})")]
        case ast.BinOp(op=ast.Add() | ast.Sub() as sign, left=left, right=right):
            opposite = ast.Sub() if isinstance(sign, ast.Add) else ast.Add()
            yield "+/-", [(node, f"({ast.unparse(ast.BinOp(left, opposite, right))})")]
        case _:
            return


def changed_values(node: Node) -> Iterator[Kind]:
    match node:
        case ast.Constant(value=bool() as value):
            yield "bool", [(node, str(not value))]
        case ast.Constant(value=int() as value):
            yield "integer", [(node, str(value + 1)), (node, f"({value - 1})")]
        case ast.Name(id="min" | "max" as name):
            yield "min/max", [(node, "max" if name == "min" else "min")]
        case ast.IfExp(test=test):
            yield "if", [(test, "True"), (test, "False")]
        case _:
            return


def changed_statements(node: Node) -> Iterator[Kind]:
    match node:
        case ast.Expr(value=ast.Call() | ast.Await(value=ast.Call())):
            yield "call", [(node, "pass")]
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield "return", [(node, "return None")]
        case ast.If(test=test):
            yield "if", [(test, "True"), (test, "False")]
        case ast.Break():
            yield "loop", [(node, "continue")]
        case ast.Continue():
            yield "loop", [(node, "break")]
        case _:
            return


def places(
    tree: ast.AST, lines: frozenset[int] = frozenset(), names: frozenset[str] = frozenset()
) -> Iterator[tuple[Node, frozenset[int], frozenset[str]]]:
    """Yield what may be changed, with the lines that run when it does, or the names it defines."""
    for child in ast.iter_child_nodes(tree):
        if is_skipped(tree, child):
            continue
        here, named = lines, names
        if isinstance(child, FUNCTION):
            # A default or a decorator runs at import; its function shows it.
            here = frozenset(range(child.body[0].lineno, (child.end_lineno or 0) + 1))
            named = frozenset({child.name})
        elif isinstance(child, ast.stmt):
            here = header(child) if lines else frozenset()
            named = names if lines else names | defined(child)
        if isinstance(child, ast.expr | ast.stmt):
            yield child, here, named
        yield from places(child, here, named)


def is_skipped(parent: ast.AST, child: ast.AST) -> bool:
    """Return whether nothing below is a rule: annotations, texts, logging, what only types need."""
    notes = (getattr(parent, "annotation", None), getattr(parent, "returns", None))
    match child:
        case ast.Expr(value=ast.Call(func=function)):
            return NO_RULES.fullmatch(ast.unparse(function)) is not None
        case (
            ast.JoinedStr()
            | ast.Assign(value=ast.Call(func=ast.Name(id="TypeVar" | "ParamSpec")))
            | ast.If(test=ast.Name(id="TYPE_CHECKING"))
            | ast.FunctionDef(decorator_list=[ast.Name(id="overload")])
        ):
            return True
        case _:
            return child in notes


def header(statement: ast.stmt) -> frozenset[int]:
    """Return the lines of a statement without those of its body."""
    last = statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None) or getattr(statement, "cases", None)
    if body:
        first = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
        last = max(statement.lineno, first.lineno - 1)
    return frozenset(range(statement.lineno, last + 1))


def defined(statement: ast.stmt) -> frozenset[str]:
    """Return the names that a statement of a module or a class gives a value."""
    targets: list[ast.expr] = []
    match statement:
        case ast.Assign():
            targets = statement.targets
        case ast.AnnAssign(target=target):
            targets = [target]
        case ast.ClassDef(name=name):
            return frozenset({name})
        case _:
            pass
    return frozenset(one.id for one in targets if isinstance(one, ast.Name))


def segment(rows: Sequence[bytes], node: Node) -> str:
    """Return the text of a node; columns count bytes."""
    chosen = rows[node.lineno - 1 : node.end_lineno]
    chosen = [*chosen[:-1], chosen[-1][: node.end_col_offset]]
    return b"".join([chosen[0][node.col_offset :], *chosen[1:]]).decode()


def one_line(text: str) -> str:
    return " ".join(text.split())


def splice(rows: Sequence[bytes], node: Node, new: str) -> str:
    """Write something else in the place of a node."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    before, after = rows[first][: node.col_offset], rows[last][node.end_col_offset :]
    return b"".join([*rows[:first], before, new.encode(), after, *rows[last + 1 :]]).decode()


def drawn(package: Path, seed: int, most: int, only: str) -> list[Mutant]:
    """Return the sample: the places with the lowest hashes."""
    found: list[tuple[str, Mutant]] = []
    for folder in MUTATED:
        for path in sorted((package / folder).glob("*.py")):
            file = path.relative_to(package).as_posix()
            if file not in LEFT_OUT and only in file:
                found += mutants(file, path.read_text(encoding="utf-8"), seed)
    found.sort(key=lambda ranked: ranked[0])
    return sorted((one for _, one in found[:most]), key=lambda one: (one.file, one.line))


# Which tests know a place


class Coverage:
    """Which tests run a line, as one run of them has shown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / PACKAGE
        self._quick = CoverageData(str(folder / ".coverage.quick"))
        self._slower = CoverageData(str(folder / ".coverage.slower"))
        self._quick.read()
        self._slower.read()
        self._users: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for path in sorted(self._folder.rglob("*.py")):
            file = path.relative_to(self._folder).as_posix()
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for word in set(re.findall(r"\w+", line)):
                    self._users[word].append((file, number))

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that may notice a change, the likeliest first."""
        quick = self._covering(self._quick, mutant)
        slower = self._covering(self._slower, mutant)
        if quick:  # of the others, those that are about this module or its neighbours
            slower = {test for test in slower if distance(mutant, test) < ELSEWHERE}
        ranked = [
            *sorted(quick, key=lambda test: (distance(mutant, test), test)),
            *sorted(slower - quick, key=lambda test: (distance(mutant, test), test)),
        ]
        return [*UNSEEN.get(mutant.file, ()), *ranked]

    def _covering(self, data: CoverageData, mutant: Mutant) -> set[str]:
        found = self._running(data, mutant.file, mutant.lines)
        if found:
            return found
        # It runs at import: the tests that reach a line with one of its names.
        for name in mutant.names:
            for file, number in self._users[name]:
                found |= self._running(data, file, {number})
        return found or (set() if mutant.lines else self._running(data, mutant.file, None))

    def _running(
        self, data: CoverageData, file: str, lines: frozenset[int] | set[int] | None
    ) -> set[str]:
        by_line = data.contexts_by_lineno(str(self._folder / file))
        contexts = [by_line.get(one, []) for one in (by_line if lines is None else lines)]
        return {test.rpartition("|")[0] for tests in contexts for test in tests if test}


def distance(mutant: Mutant, test: str) -> int:
    """Rank a test by where it is: the module's own, its folder's, the others."""
    folder, _, module = mutant.file.removesuffix(".py").partition("/")
    if test.startswith(f"tests/{folder}/test_{module}"):
        return 0
    return 1 if test.startswith(f"tests/{folder}/") else ELSEWHERE


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the chosen tests, in their order."""
    chosen = Path(os.environ[CHOSEN_TESTS]).read_text(encoding="utf-8").splitlines()
    order = {test: index for index, test in enumerate(chosen)}

    def place(item: pytest.Item) -> int | None:
        return order.get(item.nodeid, order.get(item.nodeid.partition("::")[0]))

    left = [item for item in items if place(item) is None]
    items[:] = sorted(
        (item for item in items if place(item) is not None), key=lambda i: place(i) or 0
    )
    config.hook.pytest_deselected(items=left)


# Running them


def copy_checkout(folder: Path) -> None:
    git = shutil.which("git") or "git"
    listed = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def environment(folder: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(folder), str(folder / ".ci")])
    return {**os.environ, "PYTHONPATH": path, **more}


def record_coverage(folder: Path) -> None:
    """Run the tests once, unchanged; they must pass."""
    slower = ("-m", "not quick and not thorough", *SLOWER_TESTS)
    for name, chosen in (("quick", ("-m", "quick")), ("slower", slower)):
        subprocess.run(
            [
                *PYTEST,
                f"-n{COPIES}",
                f"--cov={PACKAGE}",
                "--cov-context=test",
                "--cov-report=",
                *chosen,
            ],
            cwd=folder,
            env=environment(folder, COVERAGE_FILE=str(folder / f".coverage.{name}")),
            check=True,
        )
    # By their hashes: a change within the same second is not to be overlooked.
    compileall = ("compileall", "-q", "-f", "--invalidation-mode", "checked-hash", PACKAGE)
    subprocess.run([sys.executable, "-m", *compileall], cwd=folder, check=True)


def is_killed(mutant: Mutant, tests: Sequence[str], folder: Path) -> bool:
    """Return whether a test fails, or hangs, with the change in that copy."""
    if not tests:
        return False
    path, chosen = folder / PACKAGE / mutant.file, folder / "chosen.txt"
    original = path.read_text(encoding="utf-8")
    chosen.write_text("\n".join(tests), encoding="utf-8")
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    path.write_text(mutant.source, encoding="utf-8")
    process = subprocess.Popen(
        [
            *PYTEST,
            "-x",
            "-n0",
            "-m",
            "not thorough",
            "-p",
            "mutate",
            f"--timeout={TEST_SECONDS}",
            *files,
        ],
        cwd=folder,
        env=environment(folder, PYTHONDONTWRITEBYTECODE="1", **{CHOSEN_TESTS: str(chosen)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=MUTANT_SECONDS)
    except subprocess.TimeoutExpired:
        return False  # too many tests; one that hangs has a limit of its own
    finally:
        end_session(process)
        path.write_text(original, encoding="utf-8")
    if process.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(f"{mutant}: no test was run\n{output.decode()}")
    return process.returncode != pytest.ExitCode.OK


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End what a run of tests left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def known_survivors() -> dict[tuple[str, str, str], str]:
    """Read the list: for each a file and a line of it, the change, and the verdict."""
    known: dict[tuple[str, str, str], str] = {}
    for entry in re.split(r"\n\s*\n", KNOWN.read_text(encoding="utf-8")):
        rows = [row.strip() for row in entry.splitlines() if not row.startswith("#")]
        if not rows:
            continue
        place, change, *verdict = rows
        file, _, text = place.partition(": ")
        reason = " ".join(verdict)
        if not re.match(r"(equivalent|accepted): \S", reason):
            raise ValueError(f"{KNOWN.name}: neither equivalent nor accepted: {place}")
        known[file, text, change] = reason
    return known


def main() -> int:
    parser = argparse.ArgumentParser(description="Change the rules and see whether tests fail.")
    parser.add_argument("--sample", type=int, default=200, help="how many places to change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the files' names")
    given = parser.parse_args()
    known, begun = known_survivors(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="asyncjobs-mutation-") as temporary:
        folders = [Path(temporary) / str(number) for number in range(COPIES)]
        copy_checkout(folders[0])
        sample = drawn(folders[0] / PACKAGE, given.seed, given.sample, given.only)
        record_coverage(folders[0])
        for folder in folders[1:]:
            shutil.copytree(folders[0], folder)
        survivors = run(sample, Coverage(folders[0]), folders)
    return report(sample, survivors, known, time.monotonic() - begun)


def run(sample: Sequence[Mutant], coverage: Coverage, folders: Sequence[Path]) -> list[Mutant]:
    """Try each change in a copy that is free; return those that no test noticed."""
    free: queue.Queue[Path] = queue.Queue()
    for folder in folders:
        free.put(folder)
    # Read here: SQLite's connections belong to their thread.
    tests = [coverage.tests_of(mutant) for mutant in sample]

    def survives(mutant: Mutant, known_tests: Sequence[str]) -> bool:
        folder = free.get()
        try:
            killed = is_killed(mutant, known_tests, folder)
        finally:
            free.put(folder)
        word = "killed" if killed else "SURVIVED"
        place = f"{PACKAGE}/{mutant.file}:{mutant.line}"
        print(f"{word:8} {place}: {mutant.change} ({len(known_tests)} tests)", flush=True)
        return not killed

    with ThreadPoolExecutor(len(folders)) as pool:
        alive = list(pool.map(survives, sample, tests))
    return [mutant for mutant, lives in zip(sample, alive, strict=True) if lives]


def report(
    sample: Sequence[Mutant],
    survivors: Sequence[Mutant],
    known: dict[tuple[str, str, str], str],
    seconds: float,
) -> int:
    equivalent = 0
    for mutant in survivors:
        verdict = known.get(mutant.key, "a rule without a test?")
        equivalent += verdict.startswith("equivalent")
        print(f"\n{PACKAGE}/{mutant.file}:{mutant.line}: {mutant.text}")
        print(f"  {mutant.change}\n  {verdict}")
    counted = len(sample) - equivalent
    killed = len(sample) - len(survivors)
    share = killed / counted if counted else 1.0
    print(
        f"\n{len(sample)} changes, {killed} killed, {len(survivors)} alive, of which {equivalent}"
        f" equivalent: {share:.1%} of {counted} in {seconds:.0f} s"
    )
    return 0 if share >= NEEDED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
