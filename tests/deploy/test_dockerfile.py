"""deploy/Dockerfile, as a linter for Dockerfiles reads it, and what it promises of itself. It isn't built here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from overlays import DEPLOY

DOCKERFILE = DEPLOY / "Dockerfile"
LINTER = Path(sys.executable).with_name("hadolint")
TEXT = DOCKERFILE.read_text().replace("\\\n", "")


@pytest.mark.skipif(not LINTER.exists(), reason="hadolint has no wheel for this platform")
def test_hadolint_finds_nothing() -> None:
    """Its syntax is right, and so are its habits."""
    found = subprocess.run([LINTER, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_one_file_for_both_devices() -> None:
    """`DEVICE` names the stage that the rest stands on: cpu, unless told, or cuda; each installs its torch, and
    nothing else differs."""
    assert "ARG DEVICE=cpu\n\nFROM" in TEXT
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", TEXT, re.MULTILINE)
    assert stages[1:] == [("python", "cpu"), ("python", "cuda"), ("${DEVICE}", "")]
    for stage in TEXT.split("\nFROM ")[2:4]:
        assert len(re.findall(r"pip install --no-cache-dir torch==", stage)) == 1


def test_it_ends_as_a_user_with_a_number() -> None:
    """Kubernetes' `runAsNonRoot` wants to know."""
    last = TEXT.split("\nFROM ")[-1]
    users = re.findall(r"^USER (.+)$", last, re.MULTILINE)
    assert users == ["10001"]
    assert "useradd --create-home --uid 10001 warpcache" in TEXT
