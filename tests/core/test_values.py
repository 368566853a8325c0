"""Values are immutable: a new state is a new object."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from asyncjobs import core, http, records


def values() -> Iterator[Any]:
    for package in (core, http, records):
        for module in modules(package):
            for found in vars(module).values():
                ours = isinstance(found, type) and found.__module__ == module.__name__
                if ours and dataclasses.is_dataclass(found):
                    yield found


def modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        yield import_module(found.name)


@pytest.mark.parametrize("value", [*values()], ids=lambda value: value.__qualname__)
def test_a_dataclass_is_frozen(value: Any) -> None:
    assert value.__dataclass_params__.frozen
