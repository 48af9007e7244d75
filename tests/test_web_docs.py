"""What the pages about the server say of flags, the query and numbers is what the server has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("sphn")
from moshi_mlx import local_web
from moshi_mlx.server import door, query
from moshi_mlx.server.chat import LONGEST_QUEUE, PING_SECONDS, SILENT_SECONDS, UNREAD_SECONDS

DOCS = Path(__file__).resolve().parent.parent / "docs"
WEB, PROTOCOL = (DOCS / "web.md").read_text(), (DOCS / "spec" / "protocol.md").read_text()


def test_every_flag_of_the_server_is_told():
    told = set(re.findall(r"--[a-z-]+", WEB))
    group = next(g for g in local_web.parser()._action_groups if g.title == "server")
    flags = {a.option_strings[0] for a in group._group_actions}
    assert flags - told == {"--no-compile"}


def test_the_query_is_told_whole():
    """Every parameter that a client can get wrong, and its bounds."""
    source = Path(query.__file__).read_text()
    names = set(re.findall(r'get\("(\w+)"', source))
    assert names == set(re.findall(r"`(\w+)`", PROTOCOL.split("## Query")[1].split("\n\n")[1])) & names
    assert f"0 (greedy) to {query.HIGHEST_TEMPERATURE:g}" in PROTOCOL
    assert f"up to {query.LONGEST_ROLE} characters" in PROTOCOL
    assert f"{-query.LARGEST_BIAS:g} to {query.LARGEST_BIAS:g}" in PROTOCOL


def test_numbers_are_those_of_the_server():
    assert (
        f"pings every {PING_SECONDS:g} s and gives up on who does not answer within {PING_SECONDS / 2:g} s" in PROTOCOL
    )
    assert f"takes nothing for {UNREAD_SECONDS:g} s" in PROTOCOL
    assert f"heard for {SILENT_SECONDS:g} s" in PROTOCOL
    assert f"for {door.IDLE_SECONDS:g} s are closed" in PROTOCOL
    assert f"more than {door.MOST_CONNECTIONS}. At most {LONGEST_QUEUE} clients wait" in PROTOCOL
