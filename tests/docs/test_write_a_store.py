"""The stores and dispatchers that the documentation teaches pass the suites that it teaches."""

from pathlib import Path
from typing import Any

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

HOWTO = Path(__file__).parents[2] / "docs" / "howto"


def visible_blocks_of(page: Path) -> dict[str, Any]:
    document = Document.parse(str(page), PythonCodeBlockParser())
    document.namespace["__name__"] = __name__
    for example in document.examples():
        if document.text.startswith("```", example.start):
            example.evaluate()
    return document.namespace


BLOCKS = visible_blocks_of(HOWTO / "write-a-store.md")

TestTheStoreOfThePage = BLOCKS["TestDictStore"]
TestTheListingStoreOfThePage = BLOCKS["TestListingDictStore"]
TestTheSharedStoreOfThePage = BLOCKS["TestSharedDictStore"]


class TestTheDispatcherOfThePage(
    visible_blocks_of(HOWTO / "write-a-dispatcher.md")["TestQueueDispatcher"]  # type: ignore[misc]
):
    @pytest.fixture
    def anyio_backend(self) -> str:
        """Name the one event loop that its queue knows, as the page does."""
        return "asyncio"
