"""The status page for readers, keyboards and screen readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

OpenPage = Callable[..., Page]

# WCAG 2.2, 1.4.3: the contrast between each text and its background, by relative luminance.
CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const channels = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (colour) => {
        const [red, green, blue] = channels(colour).slice(0, 3).map(part => part / 255).map(
            part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const behind = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return channels(colour)[3] ? colour : behind(node.parentElement);
    };
    const contrast = (one, other) => {
        const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const texts = [...document.querySelectorAll("main *")].filter(
        node => node.checkVisibility() && [...node.childNodes].some(
            child => child.nodeType === Node.TEXT_NODE && child.data.trim()));
    return texts.map(
        node => [node.outerHTML, contrast(getComputedStyle(node).color, behind(node))]);
}"""

WIDTH = "document.documentElement.scrollWidth"
ANIMATION = "getComputedStyle(document.querySelector('[part=status]'), '::before').animationName"
VIOLATIONS = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", event => {
        document.body.dataset.violations = violations.push(event.violatedDirective);
    });"""

LONG = "https://exports.example.com/" + "a-very-long-name-without-any-space" * 4


def run(job: Any) -> None:
    job.tell(percent=42, message="Writing the file", current=16842, total=40100, unit="rows")


def complete(job: Any) -> None:
    run(job)
    job.tell(result={"rows": 40100})


def fail(job: Any) -> None:
    run(job)
    job.tell(error="There is no space left on the disk that exports are kept on.", code="disk_full")


STATES = {"In progress": run, "Completed": complete, "Failed": fail}


@pytest.mark.parametrize("words", STATES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 340])
def test_every_text_has_enough_contrast(
    open_page: OpenPage, job: Any, tmp_path: Path, words: str, scheme: str, width: int
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 720})
    STATES[words](job)
    page.goto(job.url)
    expect(page.locator("[part=status]")).to_have_text(words)
    expect(page.locator("[part=count]")).to_have_text("16,842 of 40,100 rows")
    page.get_by_text("Technical details").click()
    page.screenshot(path=tmp_path / f"{scheme} {width} {words}.png", full_page=True)
    contrasts: list[tuple[str, float]] = page.evaluate(CONTRASTS)
    assert len(contrasts) > 10
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []


def test_the_colour_scheme_follows_the_readers_preference(open_page: OpenPage, job: Any) -> None:
    grounds: list[str] = []
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        page.goto(job.url)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(243, 244, 246)", "rgb(14, 17, 22)"]


def test_nothing_moves_if_reduced_motion_is_preferred(open_page: OpenPage, job: Any) -> None:
    names: list[str] = []
    for motion in ("no-preference", "reduce"):
        page = open_page(reduced_motion=motion)
        page.goto(job.url)
        expect(page.locator("[part=status]")).to_have_text("In progress")
        names.append(page.evaluate(ANIMATION))
    assert names == ["pulse", "none"]


def test_long_words_do_not_widen_a_narrow_page(open_page: OpenPage, job: Any) -> None:
    page = open_page(viewport={"width": 320, "height": 640})
    page.goto(job.url)
    job.tell(percent=10, message=LONG, current=1, total=2, unit=LONG)
    expect(page.locator("[part=message]")).to_have_text(LONG)
    assert page.evaluate(WIDTH) == 320
    job.tell(error=LONG, code="x" * 200)
    expect(page.locator("[part=error]")).to_have_text(LONG)
    assert page.evaluate(WIDTH) == 320


def test_focused_elements_have_a_visible_outline(page: Page, job: Any) -> None:
    page.goto(job.url)
    expect(page.locator("[part=status]")).to_have_text("In progress")
    page.keyboard.press("Tab")
    button = page.get_by_role("button", name="Cancel")
    expect(button).to_be_focused()
    expect(button).to_have_css("outline-style", "solid")
    expect(button).to_have_css("outline-width", "3px")


def test_the_page_has_roles_and_names_for_screen_readers(page: Page, job: Any) -> None:
    run(job)
    page.goto(job.url)
    expect(page.locator("[part=percent]")).to_have_text("42%")
    expect(page.locator("main")).to_match_aria_snapshot("""
        - heading "Export" [level=1]
        - paragraph: In progress 42%
        - progressbar "Progress"
        - paragraph: Writing the file
        - paragraph: /of about 30 s 16,842 of 40,100 rows/
        - status
        - button "Cancel"
        - term: Created
    """)
    expect(page.get_by_role("progressbar", name="Progress")).to_have_js_property("value", 42)
    expect(page.get_by_role("status")).to_have_attribute("aria-live", "polite")


@pytest.mark.parametrize("words", STATES)
def test_the_page_does_not_violate_its_own_policy(page: Page, job: Any, words: str) -> None:
    page.add_init_script(VIOLATIONS)
    page.goto(job.url)
    STATES[words](job)
    expect(page.locator("[part=status]")).to_have_text(words)
    assert page.evaluate("violations") == []


def test_the_policy_blocks_inline_scripts_and_styles(page: Page, job: Any, seen: Any) -> None:
    page.add_init_script(VIOLATIONS)
    page.goto(job.url)
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.strange = true";
        document.body.append(script);
        document.body.setAttribute("style", "color: red");
    }""")
    expect(page.locator("body")).to_have_attribute("data-violations", "2")
    assert page.evaluate("violations.sort()") == ["script-src-elem", "style-src-attr"]
    assert page.evaluate("window.strange") is None
    assert len(seen.faults) == 2  # otherwise other tests would fail on this message
    seen.faults.clear()
