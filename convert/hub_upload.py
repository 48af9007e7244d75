"""A finished folder to a repository of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moshi_mlx.commands.telling import say
from moshi_mlx.errors import CheckpointError, first_line


def upload(folder: Path, repo: str, api: Any = None) -> None:
    """Make the repository if there is none and send every file. `api` stands for `huggingface_hub.HfApi()` in tests."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    api = api or HfApi()
    try:
        api.create_repo(repo, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=str(folder), repo_type="model", commit_message="Upload converted checkpoint"
        )
    except hub.HFValidationError:
        raise CheckpointError(f"{repo!r} is not the name of a repository; expected owner/name.") from None
    except (hub.HfHubHTTPError, OSError) as e:
        raise CheckpointError(
            f"{folder} is complete, but could not be uploaded to {repo}: {first_line(e)} Log in with `hf auth login` and upload it with "
            f"`hf upload {repo} {folder}`."
        ) from None
    say(f"uploaded {folder} to https://huggingface.co/{repo}")
