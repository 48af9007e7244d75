"""Which golden cases a folder holds: `lm/<case>`, `mimi/<case>`, `system/<case>`, `family/<case>`, and runs inside the first.

Cases are told apart by the files they have and by what their configuration says, never by their names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

OWN = Path(__file__).parent / "goldens"
MARKS = {
    "lm_full": "lm/*/full.safetensors",
    "lm_run": "lm/*/runs/*.json",
    "lm_precisions": "lm/*/tensors.json",
    "sampling": "lm/sampling.safetensors",
    "mimi": "mimi/*/config.json",
    "mimi_seeded": "mimi/*/notes.json",
    "system": "system/*/expect.safetensors",
    "tts_scripts": "family/*/scripts.json",
    "tts_traces": "family/*/traces.json",
    "tts_runs": "family/**/runs.json",
    "stt_words": "family/*/cases.json",
    "stt_run": "family/*/run.json",
    "hibiki": "family/**/runs.json",
    "helium": "family/*/run.json",
    "lora": "family/*/fused.safetensors",
    "personaplex": "family/*/run.json",
    "convert": "convert/*/expect.safetensors",
    "mimi_layouts": "mimi/*/hf/model.safetensors",
}


def _is(model_type: str) -> Callable[[Path], bool]:
    return lambda path: _read(path.with_name("config.json")).get("model_type") == model_type


def _read(path: Path) -> dict:
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if isinstance(found, dict) else {}


# Where one file name stands for several kinds.
CONDITIONS: dict[str, Callable[[Path], bool]] = {
    "tts_runs": _is("tts"),
    "hibiki": _is("hibiki"),
    "stt_run": _is("stt"),
    "helium": lambda path: "greedy_continuation" in _read(path),
    "personaplex": lambda path: "text_prompt" in _read(path),
    # Full size: weights are made from a seed, of the published configuration.
    "mimi_seeded": lambda path: not path.with_name("config.json").exists(),
}


def discover(root: Path, kind: str) -> list[Path]:
    wanted = CONDITIONS.get(kind, lambda path: True)
    return [path for path in sorted(root.glob(MARKS[kind])) if wanted(path)]


def beside(case: Path, pattern: str) -> Path:
    """What the cases of a folder share: in the nearest folder above `case`, else in the repository's own goldens."""
    for folder in (*case.parents, OWN / "family"):
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    raise AssertionError(f"there is no {pattern} beside {case}")


def case_id(path: Path) -> str:
    if path.parent.name == "runs":
        return f"{path.parent.parent.name}-{path.stem}"
    return path.parent.name


def golden(kind: str):
    """Marks a test that runs once per case of `kind`."""

    def mark(function):
        function.golden_kind = kind
        return function

    return mark
