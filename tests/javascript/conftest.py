"""Node, and the packages of the lock file beside the scripts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from tests.npm import NODE, install_packages

SCRIPTS = Path(__file__).parent / "js"
BROWSER = Path(__file__).parents[2] / "asyncjobs" / "browser"
VECTORS = Path(__file__).parents[1] / "clients" / "vectors"

Node = Callable[..., str]


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Run Node among the tests' scripts and, below `client`, the shipped ones."""
    folder = tmp_path_factory.mktemp("node") / "js"
    copytree(SCRIPTS, folder, ignore=ignore_patterns("node_modules"))
    copytree(BROWSER, folder / "client")
    copytree(VECTORS, folder / "vectors")
    install_packages(folder)

    def run(*arguments: str) -> str:
        ran = subprocess.run(
            [NODE, *arguments],
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return run
