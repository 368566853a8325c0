"""The stores and dispatchers of the documentation pass the suites that it recommends."""

from pathlib import Path
from typing import Any

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from asyncjobs.testing.power_conformance import SUITES

HOWTO = Path(__file__).parents[2] / "docs" / "howto"


def visible_blocks_of(page: Path) -> dict[str, Any]:
    document = Document.parse(str(page), PythonCodeBlockParser())
    document.namespace["__name__"] = __name__
    for example in document.examples():
        if document.text.startswith("```", example.start):
            example.evaluate()
    return document.namespace


@pytest.mark.parametrize("power", SUITES, ids=lambda power: power.__name__)
def test_the_page_names_each_power_beside_its_suite(power: type) -> None:
    rows = (HOWTO / "write-a-store.md").read_text(encoding="utf-8").splitlines()
    [row] = [row for row in rows if row.startswith(f"| `{power.__name__}`")]
    assert f"`{SUITES[power].__name__}`" in row


BLOCKS = visible_blocks_of(HOWTO / "write-a-store.md")

TestTheStoreOfThePage = BLOCKS["TestDictStore"]
TestTheListingStoreOfThePage = BLOCKS["TestListingDictStore"]
TestTheCountingStoreOfThePage = BLOCKS["TestCountingDictStore"]


SharedStoreOfThePage: Any = BLOCKS["TestFolderStore"]


class TestTheSharedStoreOfThePage(SharedStoreOfThePage):  # type: ignore[misc]
    """The store of `examples/custom_store.py`, which works in threads on any event loop."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"


class TestTheDispatcherOfThePage(
    visible_blocks_of(HOWTO / "write-a-dispatcher.md")["TestQueueDispatcher"]  # type: ignore[misc]
):
    @pytest.fixture
    def anyio_backend(self) -> str:
        """Run on the one event loop that the page's queue supports."""
        return "asyncio"
