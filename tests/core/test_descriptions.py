"""Which titles, tags and metadata a job may have."""

from __future__ import annotations

from typing import Any

import pytest

from asyncjobs import EnqueueOptions
from asyncjobs.core.files import check_file_name

ORDINARY = [
    "Total 1\u202f000,00\u00a0\u20ac",  # as French number formats write it
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a non-joiner
    "\U0001f469\u200d\U0001f4bb",  # an emoji of two, with a joiner
    "\u6771\u4eac\u3000\u652f\u5e97",  # with an ideographic space
    "a\u200eb",
    "\U000e0fff\ue000",  # not assigned in this version of Unicode; private use
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_a_title_a_tag_and_a_file_name(text: str) -> None:
    options = EnqueueOptions(title=text, tags=(text,))
    assert (options.title, options.tags) == (text, (text,))
    check_file_name(text)


@pytest.mark.parametrize(
    ("character", "name"),
    [
        ("\n", "U\\+000A"),
        ("\x00", "U\\+0000"),
        ("\x7f", "U\\+007F"),
        ("\x85", "U\\+0085"),
        ("\ud800", "U\\+D800"),
        ("\u2028", "U\\+2028"),
        ("\u2029", "U\\+2029"),
        ("\u202e", "U\\+202E"),
        ("\u2066", "U\\+2066"),
    ],
)
def test_a_refused_character_is_named(character: str, name: str) -> None:
    text = f"a{character}b"
    for refused in (
        lambda: EnqueueOptions(title=text),
        lambda: EnqueueOptions(tags=[text]),
        lambda: check_file_name(text),
    ):
        with pytest.raises(ValueError, match=f"the character {name}") as caught:
            refused()
        assert str(caught.value).isprintable()


NO_TAGS: list[Any] = [None, 5, "a", b"a", {"a": 1}, {"a"}, {}, set(), iter("a"), [5]]


@pytest.mark.parametrize("tags", NO_TAGS)
def test_tags_that_are_no_sequence_of_strings_are_refused(tags: Any) -> None:
    with pytest.raises(TypeError, match=r"tags must be a sequence|tag must be a string"):
        EnqueueOptions(tags=tags)


def nested(levels: int) -> dict[str, Any]:
    found: Any = "[{" * 200
    for level in range(levels - 1):
        found = [found] if level % 2 else {'"[': found}
    return {"a": found}


def test_metadata_may_be_nested_a_hundred_levels_deep() -> None:
    assert EnqueueOptions(metadata=nested(100)).metadata == nested(100)
    assert EnqueueOptions(metadata={"a": [[]] * 500}).metadata_json is not None
    for levels in (101, 960):
        with pytest.raises(ValueError, match="at most 100 levels"):
            EnqueueOptions(metadata=nested(levels))
