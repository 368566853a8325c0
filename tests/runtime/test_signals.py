"""Stop signals are observed, and the process still handles them in its own way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from threading import Event, Thread, current_thread, main_thread
from types import FrameType

import pytest

from asyncjobs.runtime.signals import told_to_stop

NUMBERS = [signal.SIGTERM, signal.SIGINT]

Caught = list[tuple[int, FrameType | None]]


def nobody() -> None: ...


@pytest.fixture(autouse=True)
def _as_before() -> Generator[None]:
    """Check that neither the test nor the tested code leaves a signal handler behind."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    after = {number: signal.getsignal(number) for number in NUMBERS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def caught() -> Generator[Caught]:
    """Handle the signals as a server does, inside the test."""
    seen: Caught = []

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append((number, frame))

    before = {number: signal.signal(number, handle) for number in NUMBERS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_existing_handler_and_the_callback_are_both_called(
    number: signal.Signals, caught: Caught
) -> None:
    told = Event()
    with told_to_stop(told.set):
        signal.raise_signal(number)
        assert told.wait(60)
    [(seen, frame)] = caught
    assert seen == number
    assert frame is not None


def test_every_signal_calls_the_callback(caught: Caught) -> None:
    tellings: list[Event] = [Event(), Event()]
    waiting = iter(tellings)
    with told_to_stop(lambda: next(waiting).set()):
        for hook_runner in tellings:
            signal.raise_signal(signal.SIGTERM)
            assert hook_runner.wait(60)
    assert len(caught) == 2


def test_the_callback_runs_in_another_thread(caught: Caught) -> None:
    threads: list[Thread] = []
    told, go_on = Event(), Event()

    def tell() -> None:
        threads.append(current_thread())
        told.set()
        go_on.wait(60)

    with told_to_stop(tell):
        signal.raise_signal(signal.SIGTERM)  # returns before `tell` does
        assert len(caught) == 1
        assert told.wait(60)
        go_on.set()
    [thread] = threads
    assert thread is not main_thread()
    assert thread.daemon
    thread.join(60)


def test_signal_handlers_are_restored_even_after_an_error(caught: Caught) -> None:
    before = [signal.getsignal(number) for number in NUMBERS]

    def fail() -> None:
        with told_to_stop(nobody):
            assert [signal.getsignal(number) for number in NUMBERS] != before
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011  # the one raised above
        fail()
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert caught == []


def test_a_handler_that_was_installed_inside_the_block_stays() -> None:
    usual = signal.getsignal(signal.SIGTERM)
    outer = signal.getsignal(signal.SIGINT)

    def newer(_: int, __: FrameType | None) -> None: ...

    with told_to_stop(nobody):
        signal.signal(signal.SIGINT, newer)
    assert signal.getsignal(signal.SIGINT) is newer
    assert signal.getsignal(signal.SIGTERM) == usual
    signal.signal(signal.SIGINT, outer)


def test_nested_blocks_each_get_a_signal_and_the_handler_runs_once(caught: Caught) -> None:
    one, other = Event(), Event()
    with told_to_stop(one.set), told_to_stop(other.set):
        signal.raise_signal(signal.SIGTERM)
        assert one.wait(60)
        assert other.wait(60)
    assert len(caught) == 1


@pytest.mark.parametrize("choice", [signal.SIG_DFL, signal.SIG_IGN])
def test_an_unhandled_or_ignored_signal_stays_so(choice: signal.Handlers) -> None:
    before = signal.signal(signal.SIGTERM, choice)
    with told_to_stop(nobody):
        assert signal.getsignal(signal.SIGTERM) is choice
    assert signal.getsignal(signal.SIGTERM) is choice
    signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_changed(caught: Caught) -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    within: list[object] = []

    def elsewhere() -> None:
        with told_to_stop(nobody):
            within.extend(signal.getsignal(number) for number in NUMBERS)

    thread = Thread(target=elsewhere)
    thread.start()
    thread.join(60)
    assert within == before
    assert caught == []


SERVER = """
import signal, sys, threading
from asyncjobs.runtime.signals import told_to_stop

# Shells ignore SIGINT for commands in the background, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
told = threading.Event()

def handle(number, frame):
    print("handled", number, flush=True)

if sys.argv[1] == "handled":
    signal.signal(signal.SIGTERM, handle)
with told_to_stop(told.set):
    print("ready", flush=True)
    for _ in range(300):  # one wait would last on if the signal came as it begins
        if told.wait(0.1):
            break
    print("told" if told.is_set() else "not told", flush=True)
print("restored", signal.getsignal(signal.SIGTERM) is handle, flush=True)
"""


def stopped_by(number: signal.Signals, how: str) -> tuple[int, list[str]]:
    """Send a signal to a process inside the block; return its exit code and its output."""
    command = [sys.executable, "-c", SERVER, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    return process.returncode, output.decode().splitlines()


def test_a_server_stopped_by_a_signal_calls_back_and_stops_as_usual() -> None:
    code, said = stopped_by(signal.SIGTERM, "handled")
    assert code == 0
    assert sorted(said) == ["handled 15", "restored True", "told"]


def test_a_process_without_a_handler_ends_at_once() -> None:
    assert stopped_by(signal.SIGTERM, "plain") == (-signal.SIGTERM, [])


def test_a_process_that_is_interrupted_ends_by_a_keyboard_interrupt() -> None:
    code, said = stopped_by(signal.SIGINT, "plain")
    assert code != 0
    assert "not told" not in said
