"""What is installed is what is in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def project() -> dict:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10, where pytest brings the same under another name
        import tomli as tomllib
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
