"""Parity with the reference implementation: tokens and codes exactly equal, continuous values within tolerance."""

from __future__ import annotations

from pathlib import Path

import golden_cases
import golden_convert
import golden_helium
import golden_hibiki
import golden_lm
import golden_lora
import golden_mimi
import golden_personaplex
import golden_stt
import golden_system
import golden_tts
import pytest
from golden_cases import golden


def test_some_cases_are_there(request):
    root = Path(request.config.getoption("--goldens"))
    assert root.is_dir(), f"there is no folder {root}"
    assert any(golden_cases.discover(root, kind) for kind in golden_cases.MARKS), f"{root} holds no golden case"


@golden("lm_full")
def test_lm_full(case):
    golden_lm.check_full(case.parent, golden_lm.load(case.parent))


@golden("lm_run")
def test_lm_run(case):
    golden_lm.check_run(golden_lm.load(case.parent.parent), case)


@golden("lm_precisions")
def test_lm_precisions(case):
    golden_lm.check_precisions(case.parent)


@golden("sampling")
def test_sampling(case):
    golden_lm.check_sampling(case)


@golden("mimi")
def test_mimi(case):
    golden_mimi.check(case.parent)


@pytest.mark.slow
@golden("mimi_seeded")
def test_mimi_full_size(case, tmp_path):
    golden_mimi.check_seeded(case.parent, tmp_path)


@golden("system")
def test_system(case, tmp_path):
    golden_system.check(case.parent, tmp_path)


@golden("tts_scripts")
def test_tts_scripts(case):
    golden_tts.check_scripts(case)


@golden("tts_traces")
def test_tts_traces(case):
    golden_tts.check_traces(case)


@golden("tts_runs")
def test_tts_runs(case):
    golden_tts.check_runs(case)


@golden("stt_words")
def test_stt_words(case):
    golden_stt.check_words(case)


@golden("stt_run")
def test_stt_run(case):
    golden_stt.check_run(case)


@golden("hibiki")
def test_hibiki(case):
    golden_hibiki.check(case.parent)


@golden("helium")
def test_helium(case):
    golden_helium.check(case.parent)


@golden("lora")
def test_lora(case):
    golden_lora.check(case.parent)


@golden("personaplex")
def test_personaplex(case):
    golden_personaplex.check(case.parent)


@golden("convert")
def test_convert_formats(case, tmp_path):
    golden_convert.check_format(case.parent, tmp_path)


@golden("lm_run")
def test_convert_lm(case, tmp_path):
    golden_convert.check_lm_run(case, tmp_path)


@golden("lm_precisions")
def test_convert_precisions(case, tmp_path):
    golden_convert.check_precisions(case.parent, tmp_path)


@golden("helium")
def test_convert_helium(case, tmp_path):
    golden_convert.check_text_model(case.parent, tmp_path)


@golden("lora")
def test_convert_lora(case, tmp_path):
    golden_convert.check_adapter(case.parent, tmp_path)


@golden("personaplex")
def test_convert_personaplex(case, tmp_path):
    golden_convert.check_personaplex(case.parent, tmp_path)


@golden("mimi_layouts")
def test_convert_codec(case, tmp_path):
    golden_convert.check_codec(case.parent.parent, tmp_path)
