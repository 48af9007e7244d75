"""What is installed is what is in the repository."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def project() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_installed():
    listed = set(project()["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "moshi_mlx").rglob("__init__.py")}
    found |= {
        f"moshi_mlx.{'.'.join(p.parent.relative_to(ROOT).parts)}"
        for name in ("convert", "quantize")
        for p in (ROOT / name).rglob("__init__.py")
    }
    assert listed == found


def test_only_minimum_versions():
    for dependency in project()["project"]["dependencies"]:
        requirement = dependency.split(";")[0]
        assert "<" not in requirement
        assert "==" not in requirement
        assert not requirement.startswith("torch")
