"""Which golden cases a folder holds: `lm/<case>`, `mimi/<case>`, `system/<case>`, and runs inside the first."""

from __future__ import annotations

from pathlib import Path

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
    "tts_runs": "family/tts_lm*/*/runs.json",
    "stt_words": "family/stt_words*/cases.json",
    "stt_run": "family/stt_lm*/run.json",
    "hibiki": "family/*/runs.json",
    "helium": "family/helium*/run.json",
    "lora": "family/*/fused.safetensors",
    "personaplex": "family/personaplex*/run.json",
    "convert": "convert/*/expect.safetensors",
    "mimi_layouts": "mimi/*/hf/model.safetensors",
}


def discover(root: Path, kind: str) -> list[Path]:
    found = sorted(root.glob(MARKS[kind]))
    if kind == "mimi_seeded":  # full size: their weights are made from a seed, of the published configuration
        return [path for path in found if not path.with_name("config.json").exists()]
    return found


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
