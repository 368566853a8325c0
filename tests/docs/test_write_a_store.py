"""The stores that the documentation teaches pass the suites that it teaches."""

from pathlib import Path

from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "write-a-store.md"


def visible_blocks_of(page: Path) -> dict[str, object]:
    document = Document.parse(str(page), PythonCodeBlockParser())
    document.namespace["__name__"] = __name__
    for example in document.examples():
        if document.text.startswith("```", example.start):
            example.evaluate()
    return document.namespace


BLOCKS = visible_blocks_of(PAGE)

TestTheStoreOfThePage = BLOCKS["TestDictStore"]
TestTheListingStoreOfThePage = BLOCKS["TestListingDictStore"]
