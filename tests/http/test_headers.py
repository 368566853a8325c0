"""Rules of single headers: If-None-Match, Accept, Prefer, Idempotency-Key and Retry-After."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncjobs import Job, JobStatus, Progress
from asyncjobs.core import lifecycle
from asyncjobs.errors import InvalidIdempotencyKey
from asyncjobs.http.headers import (
    Pacing,
    allows_change,
    attachment,
    etag_of,
    idempotency_key_of,
    matches,
    preferences,
    prefers_events,
    prefers_html,
    retry_after,
    still_at,
    wait_of,
)
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW

TAG = etag_of(7)


def test_a_tag_is_strong_and_quoted() -> None:
    assert TAG == '"7"'


@pytest.mark.parametrize(
    "header",
    [
        '"7"',
        'W/"7"',
        ' "7" ',
        '"6","7"',
        '"6", W/"7" , "8"',
        "*",
        " * ",
        '"a,b", "7"',
        'garbage, "7"',
        '"", "7"',
    ],
)
def test_a_header_that_names_the_tag_matches(header: str) -> None:
    assert matches(header, TAG)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "7",
        '"6"',
        '"77"',
        '"7',
        '7"',
        "'7'",
        'W/"6"',
        '"6, 7"',
        "**",
        '"*"',
        ",,,",
        '"7 "',
    ],
)
def test_a_header_that_does_not_name_the_tag_does_not_match(header: str | None) -> None:
    assert not matches(header, TAG)


def test_a_quote_between_two_tags_does_not_start_a_tag() -> None:
    assert not matches('"6","8"', '","')


@given(st.text())
def test_any_if_none_match_header_can_be_read(header: str) -> None:
    assert matches(header, TAG) in {True, False}


@pytest.mark.parametrize(
    ("header", "same"),
    [
        (None, True),
        ("*", True),
        (" * ", True),
        ('"7"', True),
        ('"6" , "7"', True),
        ('W/"6","7"', True),
        ('W/"7"', False),
        ('W/"7","7"', True),
        ('"6"', False),
        ("7", False),
        ("", False),
        ('"', False),
        ('W/"6"7"', False),
    ],
)
def test_if_match_names_the_tag_by_a_strong_comparison(header: str | None, same: bool) -> None:
    assert still_at(header, TAG) == same
    conditions = {} if header is None else {"if-match": header}
    assert allows_change(conditions, TAG) == same


def test_a_quote_between_two_tags_of_if_match_does_not_start_a_tag() -> None:
    assert not still_at('W/"6","8"', '","')


@given(st.text())
def test_any_if_match_header_can_be_read(header: str) -> None:
    assert still_at(header, TAG) in {True, False}


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "allowed"),
    [
        ('"7"', '"6"', True),
        ('"7"', '"7"', False),
        ('"6"', '"6"', False),
        ("*", "*", False),
        ("*", '"6"', True),
    ],
)
def test_a_change_needs_both_conditions(if_match: str, if_none_match: str, allowed: bool) -> None:
    headers = {"if-match": if_match, "if-none-match": if_none_match}
    assert allows_change(headers, TAG) == allowed


@given(st.lists(st.integers(min_value=0), max_size=9), st.integers(min_value=0))
def test_a_list_matches_when_one_of_its_tags_does(versions: list[int], version: int) -> None:
    header = ", ".join(map(etag_of, versions))
    assert matches(header, etag_of(version)) == (version in versions)


BROWSERS = {
    "Firefox": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Firefox 92 to 127": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,"
    "image/webp,*/*;q=0.8",
    "Chromium": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
    "image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
    "Safari": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Lynx": "text/html, text/plain, text/sgml, text/css, application/xhtml+xml, */*;q=0.01",
    "htmx": "text/html",
}
PROGRAMS = {
    "curl, httpx, requests, fetch": "*/*",
    "none": None,
    "empty": "",
    "axios": "application/json, text/plain, */*",
    "jQuery": "application/json, text/javascript, */*; q=0.01",
    "EventSource": "text/event-stream",
    "Go, Ruby": "*/*;q=1",
    "images": "image/avif,image/webp,*/*",
    "Insomnia": "application/json, */*",
}

qualities = st.one_of(st.none(), st.integers(0, 1000))
ranges = st.sampled_from(["text/html", "text/*", "*/*", "application/json", "application/*"])
others = st.sampled_from(
    ["image/png", "text/plain", "application/xml", "*/html", "x", ";", "", "/"]
)


def written(kind: str, quality: int | None) -> str:
    return kind if quality is None else f"{kind};q={quality / 1000:g}"


@pytest.mark.parametrize("accept", [*BROWSERS.values()], ids=[*BROWSERS])
def test_browsers_prefer_html(accept: str) -> None:
    assert prefers_html(accept)


@pytest.mark.parametrize("accept", [*PROGRAMS.values()], ids=[*PROGRAMS])
def test_programs_do_not_prefer_html(accept: str | None) -> None:
    assert not prefers_html(accept)


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/html, application/json", False),
        ("application/json, text/html", False),
        ("text/html;q=0.9, application/json", False),
        ("text/html, application/json;q=0.9", True),
        ("text/html;q=0.001, application/json;q=0", True),
        ("text/html;q=0.5, application/json;q=0.500", False),
        ("text/html;q=0", False),
        ("text/html;q=0, */*", False),
        ("application/json;q=0, */*", True),
    ],
)
def test_the_higher_weight_wins_and_json_if_they_are_equal(accept: str, *, html: bool) -> None:
    assert prefers_html(accept) == html


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/*", True),
        ("application/*", False),
        (
            "text/*;q=0.1, */*;q=0.9",
            False,
        ),  # the more specific range applies to HTML, whatever its weight
        ("*/*;q=0.1, text/*;q=0.9", True),
        ("text/*, text/html;q=0.1, application/json;q=0.5", False),
        ("text/html;q=0.1, text/*, application/json;q=0.5", False),
        ("*/*, application/*;q=0.1", True),
        ("*/*;q=0.1, application/json;q=0.2, text/html;q=0.3", True),
    ],
)
def test_the_most_specific_range_applies_in_any_order(accept: str, *, html: bool) -> None:
    assert prefers_html(accept) == html


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream, */*;q=0.1", True),
        ("text/event-stream;q=0.5, application/json", False),
        ("text/event-stream, application/json", False),
        ("text/event-stream;q=0", False),
        ("text/html, */*", False),
        ("text/*", False),
        ("*/*", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_client_that_prefers_events_to_json_gets_a_stream(
    accept: str | None, *, events: bool
) -> None:
    assert prefers_events(accept) == events


@pytest.mark.parametrize(
    "accept",
    [
        "TEXT/HTML",
        " text/html ",
        "text/html ; q=1 , application/json ; Q=0.5",
        "text/html;level=1",
        "text/html;charset=utf-8;q=0.9, application/json;q=0.8",
        "text/html;q=1.000",
        "text/html;q=1.",
        ",, ,text/html,,",
    ],
)
def test_case_blanks_and_parameters_make_no_difference(accept: str) -> None:
    assert prefers_html(accept)


@pytest.mark.parametrize(
    "junk",
    ["html", "text", "/", "text/", "/html", ";q=1", "*/html", "text /html", "text/html/x", "\x00"],
)
def test_a_malformed_media_range_is_ignored(junk: str) -> None:
    assert not prefers_html(junk)
    assert prefers_html(f"{junk}, text/html")
    assert not prefers_html(f"application/json, {junk}")


@given(
    wanted=st.lists(
        st.tuples(ranges, qualities), min_size=1, max_size=6, unique_by=lambda it: it[0]
    ),
    junk=st.lists(others, max_size=3),
    order=st.randoms(use_true_random=False),
)
def test_any_accept_header_is_decided_by_the_rule_of_the_standard(
    wanted: list[tuple[str, int | None]], junk: Sequence[str], order: Random
) -> None:
    weights = {kind: 1000 if quality is None else quality for kind, quality in wanted}

    def weight(*candidates: str) -> int:
        return next((weights[kind] for kind in candidates if kind in weights), 0)

    parts = [*(written(kind, quality) for kind, quality in wanted), *junk]
    order.shuffle(parts)
    html = weight("text/html", "text/*", "*/*")
    assert prefers_html(", ".join(parts)) == (
        html > weight("application/json", "application/*", "*/*")
    )


@given(st.text())
def test_any_accept_header_can_be_read(accept: str) -> None:
    assume("html" not in accept.lower())
    assume("text" not in accept.lower())
    assume("application" not in accept.lower())
    assert not prefers_html(accept)


@pytest.mark.parametrize("pattern", ["/", "a/", " ", ";", ";q", ";q=1", ",", "text/html;", "*"])
def test_a_long_hostile_accept_header_is_read(pattern: str) -> None:
    """A regular expression that backtracks would not end."""
    assert prefers_html(pattern * (65536 // len(pattern)) + " \x00") in {True, False}


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, {}),
        ("", {}),
        ("wait=10", {"wait": "10"}),
        ("respond-async, WAIT = 10", {"respond-async": "", "wait": "10"}),
        ('wait="10"', {"wait": "10"}),
        (r'note="a \"quoted\", comma"; x=1, wait=3', {"note": 'a "quoted", comma', "wait": "3"}),
        ("wait=1, wait=2", {"wait": "1"}),
        ('foo=""; bar', {"foo": ""}),
        ('foo=; a=1; b = "2", wait=4', {"foo": "", "wait": "4"}),
        (", ,wait=5,", {"wait": "5"}),
        ("b@d, wait=6", {"wait": "6"}),
        ('b@d="x, wait=9", wait=6', {"wait": "6"}),
        ('wait=7, "', {"wait": "7"}),
    ],
)
def test_preferences_are_read_as_rfc_7240_defines_them(
    header: str | None, found: dict[str, str]
) -> None:
    assert preferences(header) == found


@pytest.mark.parametrize(
    "header",
    [
        "a" + ";a= " * 22 + '"',
        "a" + " ; " * 22 + '"',
        "a=" + " " * 20_000 + '"',
        '"' + r"\"" * 20_000,
        '"' + r"\"" * 20_000 + "\\",
        'a="' * 20_000,
        "a=," * 20_000,
    ],
)
def test_a_long_hostile_prefer_header_is_read(header: str) -> None:
    """A regular expression that backtracks would not end."""
    assert wait_of(f"{header}, wait=5, wait=6") in {None, 5}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=0", 0),
        ("wait=20", 20),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=soon", None),
        ("wait", None),
        ("wait=٣", None),
        ("wait=12345678901234567890", None),
        ("respond-async", None),
    ],
)
def test_a_wait_is_whole_seconds_or_none(header: str, seconds: int | None) -> None:
    assert wait_of(header) == seconds


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_prefer_header_can_be_read(header: str) -> None:
    assert all(name == name.lower() for name in preferences(header))


@given(st.text(st.sampled_from('ab=,;" \\'), max_size=40))
def test_any_prefer_header_with_odd_punctuation_can_be_read(header: str) -> None:
    assert "" not in preferences(header)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (None, None),
        ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ('  "with blanks"\t', "with blanks"),
        (r'"a \"quoted\" \\ one"', r'a "quoted" \ one'),
        ("x" * 255, "x" * 255),
        (f'"{"x" * 255}"', "x" * 255),
        (f'"{chr(92) * 510}"', chr(92) * 255),
        ('"a,b"', "a,b"),
    ],
)
def test_a_key_is_read_quoted_or_bare(header: str | None, key: str | None) -> None:
    assert idempotency_key_of(header) == key


@pytest.mark.parametrize(
    "header",
    ["", '""', '"', '"a', "a b", '"a", "a"', "ä", '"ä"', "a\x00", "x" * 256, f'"{"x" * 256}"'],
)
def test_a_malformed_key_is_refused(header: str) -> None:
    with pytest.raises(InvalidIdempotencyKey):
        idempotency_key_of(header)


@pytest.mark.parametrize("header", ["a, b", "a,b", "a, a", "a,", ",", '"a","b"'])
def test_two_keys_are_refused_however_a_server_joins_them(header: str) -> None:
    with pytest.raises(InvalidIdempotencyKey):
        idempotency_key_of(header)


def delay_of(estimate: float | None, pacing: Pacing | None = None) -> int | None:
    expected = None if estimate is None else timedelta(seconds=estimate)
    return retry_after(sample_job(), NOW, pacing or Pacing(), expected)


def running(progress: int) -> Job:
    started = lifecycle.start(sample_job(), NOW, None)
    return lifecycle.report(started, Progress(percent=progress), token=None)


def delayed(seconds: float) -> Job:
    job = sample_job()
    return job.model_copy(update={"run_at": NOW + timedelta(seconds=seconds)})


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [(None, 3), (0, 3), (0.1, 3), (30, 3), (30.1, 4), (40, 4), (40.1, 6), (86400, 6)],
)
def test_the_delay_is_a_tenth_of_the_expected_duration_within_the_bounds(
    estimate: float | None, expected: int
) -> None:
    assert delay_of(estimate) == expected


@pytest.mark.parametrize(
    ("pacing", "delays"),
    [
        (Pacing(), {3, 4, 6}),
        (Pacing(1, 2), {1}),
        (Pacing(1, 5), {1, 3, 4}),
        (Pacing(2, 5), {3, 4}),
        (Pacing(2, 2), {2}),
        (Pacing(1.5, 1.5), {2}),
        (Pacing(5, 5.5), {6}),
        (Pacing(5, 5), {5}),
        (Pacing(20, 22), {20, 21, 22}),
    ],
)
def test_delays_avoid_the_keep_alive_of_common_servers(pacing: Pacing, delays: set[int]) -> None:
    assert pacing.delays() == delays


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, 3), (3.2, 4), (3600, 6)])
def test_a_delayed_job_is_polled_at_its_run_at(seconds: float, expected: int) -> None:
    assert retry_after(delayed(seconds), NOW, Pacing(), None) == expected


@pytest.mark.parametrize(
    ("elapsed", "progress", "expected", "answer"),
    [
        (0, 0, None, 1),
        (30, 50, None, 6),  # capped at one minute
        (30, 50, 600, 6),  # the observed speed takes precedence over the estimate
        (57, 95, None, 3),  # nearly done
        (60, 100, None, 6),  # at 100 percent, and not ended
        (5, 0, 80, 8),
        (79, 0, 80, 1),
        (200, 0, 80, 20),  # longer than estimated
        (-5, 10, None, 1),  # clocks differ
    ],
)
def test_the_delay_of_a_running_job_depends_on_the_time_left(
    elapsed: float, progress: int, expected: float | None, answer: int
) -> None:
    length = None if expected is None else timedelta(seconds=expected)
    now = NOW + timedelta(seconds=elapsed)
    assert retry_after(running(progress), now, Pacing(1, 60), length) == answer


def test_only_a_terminal_job_has_no_retry_after(
    job_of_each_status: dict[JobStatus, Job],
) -> None:
    answers = {
        status.terminal: retry_after(job, NOW, Pacing(), None) is None
        for status, job in job_of_each_status.items()
    }
    assert answers == {True: True, False: False}


def test_other_bounds_can_be_set() -> None:
    assert delay_of(None, Pacing(min_delay=1, max_delay=1)) == 1
    assert delay_of(3600, Pacing(min_delay=1, max_delay=timedelta(minutes=1))) == 60
    assert delay_of(None, Pacing(2.5, 9)) == 3


def test_bounds_are_seconds_or_timedeltas() -> None:
    assert Pacing(1, 2.5) == Pacing(timedelta(seconds=1), timedelta(seconds=2.5))


@pytest.mark.parametrize(("least", "most"), [(0, 5), (0.9, 5), (-1, 5), (3, 2)])
def test_bounds_out_of_order_are_refused(least: float, most: float) -> None:
    with pytest.raises(ValueError, match="1 s <= min_delay <= max_delay"):
        Pacing(least, most)


@given(
    st.none() | st.floats(min_value=0, max_value=1e8),
    st.floats(min_value=-1e6, max_value=1e6),
    st.integers(0, 100),
)
def test_the_delay_is_always_within_the_bounds(
    estimate: float | None, moment: float, progress: int
) -> None:
    length = None if estimate is None else timedelta(seconds=estimate)
    for job, now in ((delayed(moment), NOW), (running(progress), NOW + timedelta(seconds=moment))):
        assert retry_after(job, now, Pacing(), length) in {3, 4, 6}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("export_customers", "export_customers.json"),
        ("shop.tasks.export", "shop.tasks.export.json"),
        ('a"b\\c/d\r\ne', "a-b-c-d-e.json"),
        ("überweisen", "berweisen.json"),
        ("../../x", "x.json"),
        ("導出", "file.json"),
    ],
)
def test_attachment_names_are_valid_on_every_file_system(name: str, file: str) -> None:
    assert attachment(name, ".json") == ("Content-Disposition", f'attachment; filename="{file}"')
