"""`python -m moshi_mlx.serve`: what it refuses, chooses, says and ends with; and how many rows a machine can have."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest
import speech_toys
from speech_server import wire
from speech_toys import _tidy  # noqa: F401
from test_packaging import project
from test_web_command import Program, say

pytest.importorskip("sphn")
from moshi_mlx import __main__, serve
from moshi_mlx.checkpoint import registry
from moshi_mlx.commands import serve as work
from moshi_mlx.errors import MoshiError
from moshi_mlx.live.warmup import StepTimes
from moshi_mlx.machine.capacity import Capacity
from moshi_mlx.machine.serving import MOST_ROWS, Cost, rows_in_time, rows_that_fit
from moshi_mlx.server import making


@pytest.fixture(scope="module")
def everything(tiny_checkpoint):
    """All three kinds in one process, as small as can be."""
    program = Program(
        "--talk", tiny_checkpoint, "--stt", speech_toys.checkpoint("tiny-stt"), "--tts", speech_toys.checkpoint("tiny-tts"),
        "--rows", "2", "--no-compile", "--voice", "b.wav", "--seed", "1", command="serve",
    )  # fmt: skip
    yield program
    program.process.kill()
    program.process.wait()


def get(program, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{program.port}{path}") as answer:
        return answer.read().decode()


def test_it_says_what_is_where_and_whether_it_keeps_up(everything):
    said = "\n".join(everything.lines)
    assert f"speech to text at ws://localhost:{everything.port}/api/asr-streaming" in said
    assert f"text to speech at ws://localhost:{everything.port}/api/tts_streaming" in said
    assert f"OpenAI's clients: base URL http://localhost:{everything.port}/v1" in said
    assert re.search(r"talk [\d.]+ ms per frame .*, stt [\d.]+ ms .*, tts [\d.]+ ms .* with all 2 rows of each: ", said)


def test_all_three_answer_on_one_port(everything):
    async def speak_and_hear():
        base = f"ws://127.0.0.1:{everything.port}"
        async with (
            wire(f"{base}/api/tts_streaming?format=PcmMessagePack") as tts,
            wire(f"{base}/api/asr-streaming") as stt,
        ):
            await tts.send("Text", text="hello there")
            await tts.send("Eos")
            assert await tts.rest() == 1000
            pcm = tts.pcm
            await stt.audio(pcm)
            await stt.until("Step", len(pcm) // 1920)

    client = asyncio.run(say(everything.links[0]))
    assert len(client.audio) == 10
    asyncio.run(speak_and_hear())
    kinds = json.loads(get(everything, "/health"))["kinds"]
    assert list(kinds) == ["talk", "stt", "tts"] and {k["rows"] for k in kinds.values()} == {2}
    # Clients learn no folders of this machine.
    assert kinds["stt"]["model"] == "tiny-stt"
    assert all(f'moshi_steps_total{{kind="{kind}"}}' in get(everything, "/metrics") for kind in kinds)
    assert "<html" in get(everything, "/")
    modules = json.loads(get(everything, "/api/modules_info"))
    assert [m["path"] for m in modules] == ["/api/asr-streaming", "/api/tts_streaming"]


def test_a_signal_ends_it_in_order(everything):
    code, err = everything.end()
    assert code == 130 and "ended by SIGINT" in err and "Traceback" not in err


BAD = {
    "nothing": ([], "name what should be served"),
    "rows": (["--stt", "--rows", "0"], "--rows should be 1 or more"),
    "kind": (["--stt", "moshiko"], "moshiko is a dialogue model"),
    "kind of a folder": (["--tts", "STT"], "is a speech-to-text model"),
    "name": (["--stt", "stt-1c"], "Did you mean stt-1b"),
    "folder": (["--talk", "HERE/none"], "does not exist"),
    "repository of another kind": (["--tts", "hf://kyutai/stt-1b-en_fr-mlx"], "is a speech-to-text model"),
    "voice": (["--tts", "TTS", "--voice", "none.wav"], "there is no voice 'none.wav'"),
    "voices": (["--tts", "TTS", "--voice-repo", "HERE", "--voice", "a.wav"], "there is no voice 'a.wav'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_served_is_refused(tmp_path, case):
    args, message = BAD[case]
    places = {"HERE": tmp_path, "STT": speech_toys.checkpoint("tiny-stt"), "TTS": speech_toys.checkpoint("tiny-tts")}
    for name, path in places.items():
        args = [a.replace(name, str(path)) for a in args]
    with pytest.raises(MoshiError, match=message):
        serve.main([*args, "--port", "0"])


@pytest.mark.parametrize("kind", ["stt", "tts"])
def test_speech_without_a_tokenizer_is_refused(tmp_path, kind):
    folder = shutil.copytree(speech_toys.checkpoint(f"tiny-{kind}"), tmp_path / "c")
    [tokenizer] = folder.glob("*.model")
    tokenizer.unlink()
    with pytest.raises(MoshiError, match=f"lacks the tokenizer '{tokenizer.name}'; put it there or name it with"):
        serve.main([f"--{kind}", str(folder), "--port", "0"])


def test_without_names_it_serves_the_usual_models():
    args = serve.parser().parse_args(["--talk", "--stt", "--tts", "-q", "4", "--context", "60"])
    assert (args.talk, args.stt, args.tts) == ("moshiko", "stt-1b", "tts-1.6b")
    own = work.arguments_of(args, "stt")
    assert (own.model, own.quantized, own.context, own.hf_repo) == ("stt-1b", 4, 60, None)


@pytest.mark.parametrize("name", ["hf://kyutai/stt-1b-en_fr-mlx", "kyutai/stt-1b-en_fr-mlx"])
def test_repositories_go_by_their_names(name, tmp_path, monkeypatch):
    args = serve.parser().parse_args(["--stt", name])
    own = work.arguments_of(args, "stt")
    assert (own.model, own.hf_repo) == (None, "kyutai/stt-1b-en_fr-mlx")
    # A folder of that name is a folder.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kyutai" / "stt-1b-en_fr-mlx").mkdir(parents=True)
    own = work.arguments_of(args, "stt")
    assert (own.hf_repo is None) == (not name.startswith("hf:"))


def test_its_flags_are_those_of_the_page_beside_those_of_models():
    from moshi_mlx import local_web

    def flags(parser):
        return {o for a in parser._actions for o in a.option_strings}

    assert {"--host", "--port", "--ssl", "--token", "--allow-origin", "--allow-host", "--rows", "--static"} <= flags(
        serve.parser()
    ) & flags(local_web.parser())


def test_it_is_a_command_with_a_console_script():
    assert "serve" in __main__.COMMANDS
    assert project()["project"]["scripts"]["moshi-serve"] == "moshi_mlx.__main__:serve"
    shown = subprocess.run([sys.executable, "-m", "moshi_mlx.serve", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--stt [NAME]" in shown.stdout


@pytest.mark.parametrize(
    ("name", "shown"), [("stt-1b", "stt-1b"), ("hf://kyutai/stt-1b-en_fr-mlx", "kyutai/stt-1b-en_fr-mlx")]
)
def test_models_as_clients_know_them(name, shown):
    assert making.shown_name(name) == shown


# What keeps up, and how many rows -------------------------------------------------------------------------------------


class Rows:
    def __init__(self, rows):
        self.rows = self.scheduler = None
        self.scheduler = type("Of", (), {"rows": rows})


@pytest.mark.parametrize(
    ("times", "rows", "said"),
    [
        ({"stt": 20.0}, 1, "keeps up"),
        ({"talk": 30.0, "stt": 20.0, "tts": 29.0}, 1, "they keep up together"),
        ({"talk": 40.0, "stt": 20.0, "tts": 29.0}, 4, "talk before speech to text before text to speech"),
        ({"talk": 40.0, "stt": 20.0, "tts": 29.0}, 4, "Try fewer --rows, one kind less"),
        ({"stt": 90.0}, 1, "will not keep up"),
    ],
)
def test_what_keeps_up_together(times, rows, said):
    steps = {kind: StepTimes(p95 - 1, p95) for kind, p95 in times.items()}
    assert any(said in line for line in work.verdict(steps, [Rows(rows)]))


GB = 10**9


def test_rows_that_fit():
    """By memory, by bandwidth, none at all, and never more than was measured."""
    cost = Cost(weights=2 * GB, frame=2 * GB, row=GB // 10)
    assert rows_that_fit([cost], Capacity(64 * GB, 400, False)) == MOST_ROWS
    # 0.9 of 3 GB hold the weights, 0.25 GB of everything else, and four rows.
    assert rows_that_fit([cost], Capacity(3 * GB, 400, False)) == 4
    # 68 GB/s read 4.35 GB in the time of a frame: 2 GB of weights, and 23 rows or, of three such models, none.
    assert rows_that_fit([cost], Capacity(64 * GB, 68, False), most=100) == 23
    assert rows_that_fit([cost] * 3, Capacity(64 * GB, 68, False)) == 0
    assert rows_that_fit([cost], Capacity(2 * GB, 400, False)) == 0
    assert rows_that_fit([cost], Capacity(64 * GB, None, False)) == MOST_ROWS


@pytest.mark.parametrize(
    ("machine", "rows", "told"),
    [
        (Capacity(64 * GB, 400, False), MOST_ROWS, "by this machine's memory and bandwidth"),
        (Capacity(1000, 400, False), 1, "by this machine's memory and bandwidth"),
        (Capacity(64 * GB, None, True), None, "by a step of one row"),
    ],
)
def test_rows_are_chosen_where_nobody_says_how_many(machine, rows, told, monkeypatch, capsys):
    monkeypatch.setattr(work, "capacity", lambda: machine)
    args = serve.parser().parse_args(["--stt", str(speech_toys.checkpoint("tiny-stt")), "--no-compile"])
    with contextlib.ExitStack() as stack:
        offer = work.make_services(args, ["stt"], stack)
        found = offer.services.stt.scheduler.rows
        assert found == rows if rows is not None else 1 <= found <= MOST_ROWS
        assert offer.services.running
    assert f"rows: {found} of each kind, {told}" in capsys.readouterr().err.replace("\n", " ")
    assert not offer.services.running


def test_rows_by_a_measured_step():
    assert rows_in_time([0.016]) == 4
    assert rows_in_time([0.010, 0.006]) == 4
    assert rows_in_time([0.2]) == 1
    assert rows_in_time([0.0001]) == MOST_ROWS


def test_the_cost_of_a_checkpoint_is_that_of_its_parts():
    loaded = speech_toys.loaded("tiny-stt")
    cost, packed = making.cost_of(loaded), making.cost_of(loaded, kv_bits=8)
    assert 0 < cost.frame <= cost.weights and 0 < packed.row < cost.row


def test_published_models_on_published_chips():
    """More machine never holds fewer rows."""
    stt, tts = registry.by_name("stt-1b").cost, registry.by_name("tts-1.6b").cost
    small, large = Capacity(8 * GB, 68, False), Capacity(64 * GB, 400, False)
    assert 1 <= rows_that_fit([stt], small) <= rows_that_fit([stt], large)
    assert rows_that_fit([stt, tts], small) <= rows_that_fit([stt, tts], large)
    assert rows_that_fit([stt, tts], large) >= 1
