"""The small speech-to-text model in the package hears what the prompts of the demo model say."""

from __future__ import annotations

import json

import pytest

from moshi_mlx import stt
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.checkpoint.published import DEMO_FOLDER, DEMOS
from moshi_mlx.models.__main__ import main as models

FOLDER = DEMOS["demo-stt"]


def test_the_folder_is_complete_and_small():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 13e6
    files = locate("demo-stt")
    assert files.licence == "mit"
    assert files.config.stt is not None
    assert None not in (files.mimi, files.tokenizer)


def test_it_is_installed_with_the_package():
    from test_packaging import project

    patterns = project()["tool"]["setuptools"]["package-data"]["moshi_mlx"]
    matched = {p for pattern in patterns for p in FOLDER.parent.glob(pattern)}
    assert {*FOLDER.iterdir()} <= matched


@pytest.mark.parametrize(
    ("name", "text"),
    [("sum", "what is three plus four"), ("name", "what is your name"), ("about", "tell me about yourself")],
)
def test_what_it_hears(name, text, capsys, tmp_path):
    """Also the words' times: in order, and the first where the speech begins."""
    written = tmp_path / "heard.json"
    assert stt.main(["--demo", str(DEMO_FOLDER / "prompts" / f"{name}.flac"), "-o", str(written)]) == 0
    words = json.loads(written.read_text())["words"]
    assert " ".join(word["word"].strip() for word in words) == text
    starts = [word["start"] for word in words]
    assert starts == sorted(starts)
    assert 0.2 <= starts[0] <= 0.8  # the recordings begin with 0.4 s of silence


def test_the_list_of_models_names_it(capsys):
    assert models(["demo-stt"]) == 0
    assert "python -m moshi_mlx.stt --demo" in capsys.readouterr().out
