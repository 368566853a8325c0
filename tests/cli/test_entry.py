"""How the command starts, which modules it imports, and how it behaves in a pipe."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest

from asyncjobs.cli import main
from asyncjobs.cli.app import COMMANDS

if TYPE_CHECKING:
    from tests.cli.conftest import Fill, Made, Shell

pytestmark = pytest.mark.every_store(without="memory")

CLI = [sys.executable, "-m", "asyncjobs"]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "ASYNCJOBS_STORE"}
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=60, env={**env, **environment}
    )


@pytest.mark.parametrize("missing", [("click",), ("rich",), ("click", "rich")], ids="-".join)
def test_a_missing_extra_is_named_in_one_sentence(missing: tuple[str, ...]) -> None:
    hidden = "; ".join(f"sys.modules[{name!r}] = None" for name in missing)
    script = f"import sys; {hidden}; from asyncjobs.cli import main; main()"
    done = run(sys.executable, "-c", script)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"The command asyncjobs needs {' and '.join(missing)}: pip install 'asyncjobs-http[cli]'.\n"
    )


def test_a_command_loads_only_what_it_needs(file: str, fill: Fill) -> None:
    fill(file, [])
    script = (
        "import sys; from asyncjobs.cli.app import commands\n"
        f"commands(['list', '--store', {file!r}], standalone_mode=False); print(*sys.modules)"
    )
    loaded = run(sys.executable, "-c", script).stdout.split()
    ours = {name for name in loaded if name.startswith("asyncjobs.cli.")}
    assert "asyncjobs.cli.listing" in ours
    assert ours.isdisjoint({f"asyncjobs.cli.{name}" for name in ("actions", "transfer", "watch")})
    assert {"redis", "psycopg", "starlette", "rich.progress"}.isdisjoint(loaded)


def test_the_script_and_the_module_are_the_same() -> None:
    [script] = entry_points(group="console_scripts", name="asyncjobs")
    assert script.load() is main
    done = run(*CLI, "--version")
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "asyncjobs")


def test_every_command_has_help(asyncjobs: Shell) -> None:
    listed = asyncjobs("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in listed
        assert asyncjobs(name, "-h").stdout.startswith(f"Usage: commands {name} ")


def test_an_unknown_command_is_a_usage_error(asyncjobs: Shell) -> None:
    result = asyncjobs("lsit")
    assert (result.exit_code, "No such command 'lsit'" in result.stderr) == (2, True)


def test_a_closed_pipe_causes_no_traceback(url: str, fill: Fill, made: Made) -> None:
    fill(url, [made(user_id="u" * 500) for _ in range(300)])
    for form in ((), ("--json",)):
        words = [*CLI, "list", "--limit", "300", *form, "--store", url]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
            assert listing.stdout is not None
            assert listing.stderr is not None
            listing.stdout.read(10)
            listing.stdout.close()
            assert b"Traceback" not in listing.stderr.read()


def test_without_a_terminal_there_are_no_colours_and_no_wrapped_lines(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    job = made(user_id="a-very-long-name" * 20)
    fill(url, [job])
    out = asyncjobs("list", "--store", url).stdout
    assert "\x1b" not in out
    assert out.splitlines()[1].endswith("a-very-long-name" * 20)


def test_a_narrow_terminal_keeps_ids_and_statuses_whole(url: str, fill: Fill, made: Made) -> None:
    job = made(user_id="a-very-long-name" * 5)
    fill(url, [job])
    near, far = pty.openpty()
    words = [*CLI, "list", "--store", url]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm"}
    with subprocess.Popen(words, stdout=far, env=environment) as listing:
        os.close(far)
        seen = b""
        while b"pending" not in seen:
            seen += os.read(near, 4096)
        assert listing.wait(30) == 0
    os.close(near)
    assert f"{job.id}  export  pending" in seen.decode()
