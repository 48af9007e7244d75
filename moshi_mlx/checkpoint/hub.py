"""Files of Hugging Face repositories, with every failure told in one sentence."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from ..config.input_files import check_name
from ..errors import CheckpointError, first_line, quoted

# A connection takes a fraction of a second where there is a network.
SECONDS_TO_WAIT = 2.0


def is_hub_name(name: str) -> bool:
    return name.startswith("hf://")


def split_hub_name(name: str) -> tuple[str, str]:
    """`hf://owner/repo/path/file` -> (`owner/repo`, `path/file`)."""
    parts = name.removeprefix("hf://").split("/")
    if len(parts) < 3:
        raise CheckpointError(f"{quoted(name)} should be hf://owner/repository/file.")
    check_name(name.removeprefix("hf://"), "a file of the Hub")
    return "/".join(parts[:2]), "/".join(parts[2:])


def download(repo: str, filename: str, *, optional: bool = False) -> Path | None:
    """Local path of a repository's file, fetched unless it is in the cache. None for a missing `optional` file."""
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    try:
        # Its own retries take half a minute where there is no network.
        return Path(hf_hub_download(repo, filename, local_files_only=not is_reachable()))
    except hub.GatedRepoError:
        raise CheckpointError(
            f"{repo} asks you to accept its licence: open https://huggingface.co/{repo}, accept it, then run `hf auth login`."
        ) from None
    except hub.RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no repository {repo!r} on the Hub, or it is private. Check the name, or run `hf auth login`."
        ) from None
    except hub.LocalEntryNotFoundError:
        raise CheckpointError(
            f"{filename} of {repo} is not in the cache and the Hub cannot be reached. "
            "Connect to the network, or name a local folder or file."
        ) from None
    except hub.EntryNotFoundError:
        if optional:
            return None
        raise CheckpointError(f"the repository {repo} has no file {filename!r}.") from None
    except hub.HFValidationError:
        raise CheckpointError(f"{quoted(repo)} is not the name of a repository; expected owner/name.") from None
    except (hub.HfHubHTTPError, OSError, ValueError) as e:
        raise CheckpointError(f"{filename} of {repo} could not be downloaded: {first_line(e)}") from None


def cached_folder(repo: str) -> Path | None:
    """The folder of a repository's files that are on this machine, None if there are none."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (hub.LocalEntryNotFoundError, hub.HFValidationError, OSError, ValueError):
        return None


@functools.cache
def is_reachable() -> bool:
    """Whether the Hub, or the proxy on the way to it, answers. One short try, once in a process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and not urllib.request.proxy_bypass(endpoint.hostname or ""):
        endpoint = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    answered = threading.Event()

    def connect() -> None:
        with (
            contextlib.suppress(OSError, UnicodeError),
            socket.create_connection((endpoint.hostname, port), SECONDS_TO_WAIT),
        ):
            answered.set()
        done.set()

    # Looking up a name heeds no timeout.
    done = threading.Event()
    threading.Thread(target=connect, daemon=True).start()
    done.wait(SECONDS_TO_WAIT)
    return answered.is_set()
