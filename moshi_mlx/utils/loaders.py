"""`utils.loaders.hf_get` of the published package."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.hub import download, is_hub_name, split_hub_name


def hf_get(filename: str | Path, hf_repo: str | None = None, check_local_file_exists: bool = False) -> Path:
    """Local path of `filename`: a path, `file://path`, `hf://owner/repo/file`, or a file of `hf_repo`."""
    if isinstance(filename, Path):
        return filename
    if is_hub_name(filename):
        path = download(*split_hub_name(filename))
    elif filename.startswith("file://"):
        path = Path(filename.removeprefix("file://"))
    elif hf_repo is None or (check_local_file_exists and Path(filename).exists()):
        path = Path(filename)
    else:
        path = download(hf_repo, filename)
    assert path is not None
    return path
