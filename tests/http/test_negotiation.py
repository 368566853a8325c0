"""HTML is for those who name it before JSON: people in browsers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from time import process_time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncjobs.http.headers import prefers_html

# The machine may be busy with other things.


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
def test_browsers_are_shown_a_page(accept: str) -> None:
    assert prefers_html(accept)


@pytest.mark.parametrize("accept", [*PROGRAMS.values()], ids=[*PROGRAMS])
def test_programs_are_given_json(accept: str | None) -> None:
    assert not prefers_html(accept)


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/html, application/json", False),  # nothing is wanted more: JSON
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
def test_the_heavier_weight_wins_and_json_where_they_are_equal(accept: str, *, html: bool) -> None:
    assert prefers_html(accept) == html


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/*", True),
        ("application/*", False),
        ("text/*;q=0.1, */*;q=0.9", False),  # the narrower range counts for HTML, weight or not
        ("*/*;q=0.1, text/*;q=0.9", True),
        ("text/*, text/html;q=0.1, application/json;q=0.5", False),
        ("text/html;q=0.1, text/*, application/json;q=0.5", False),
        ("*/*, application/*;q=0.1", True),
        ("*/*;q=0.1, application/json;q=0.2, text/html;q=0.3", True),
    ],
)
def test_the_most_specific_range_counts_wherever_it_stands(accept: str, *, html: bool) -> None:
    assert prefers_html(accept) == html


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
def test_what_is_no_media_range_is_ignored(junk: str) -> None:
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
def test_of_any_header_the_rule_of_the_standard_decides(
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
def test_any_text_has_an_answer(accept: str) -> None:
    assume("html" not in accept.lower())
    assume("text" not in accept.lower())
    assume("application" not in accept.lower())
    assert not prefers_html(accept)


@pytest.mark.parametrize("pattern", ["/", "a/", " ", ";", ";q", ";q=1", ",", "text/html;", "*"])
def test_a_header_as_long_as_servers_allow_is_read_at_once(pattern: str) -> None:
    accept = pattern * (65536 // len(pattern)) + " \x00"
    began = process_time()
    prefers_html(accept)
    assert process_time() - began < 5
