"""The page in a real browser: every state it can be in, every button, and what it looks like."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import soundfile
from web_page import NATIVE_RATE, NO_OTHER_RATE, SCHEMES, TAP, heard, launch, microphone, need_browser
from web_server import PATIENCE, Client, Echo, Server, found_again

sync_api = need_browser()
pytest.importorskip("sphn")
from test_web_guard import certificate  # noqa: E402
from test_web_models import serve  # noqa: E402

from moshi_mlx.checkpoint.registry import DEMO_FOLDER  # noqa: E402
from moshi_mlx.server import door, guard, pages  # noqa: E402
from moshi_mlx.server.app import About  # noqa: E402
from moshi_mlx.server.query import BadQuery  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a-token-of-more-than-twenty-two-letters"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
MILLISECONDS = 1000 * PATIENCE


@pytest.fixture(scope="module")
def question(tmp_path_factory) -> Path:
    """A spoken sum."""
    pcm, _ = soundfile.read(DEMO_FOLDER / "prompts" / "sum.flac", dtype="float32")
    return microphone(tmp_path_factory.mktemp("mic") / "sum.wav", pcm)


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as p:
        yield p


@pytest.fixture(scope="module")
def browser(playwright, question):
    chromium = launch(playwright, question)
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def server():
    with Server(make=lambda: Echo(2)) as s:
        yield s


class Page:
    """The page, and that nothing goes wrong behind it: no script error, no other host."""

    def __init__(self, browser, scripts=(TAP,), viewport=DESKTOP, permissions=("microphone",), **context):
        self.context = browser.new_context(viewport=viewport, permissions=list(permissions), **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(MILLISECONDS)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        for script in scripts:
            self.page.add_init_script(script)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, failed, *_) -> None:
        self.context.close()
        if failed is None:
            assert self.errors == []

    def open(self, server: Server, path: str = "/", host: str = "localhost") -> Page:
        self.page.goto(f"{server.rules.scheme}://{host}:{server.port}{path}")
        self.learned()
        return self

    def learned(self) -> None:
        """The page has heard from the server what it offers, or that it offers nothing."""
        sync_api.expect(self.page.locator("#talk")).to_be_enabled(timeout=MILLISECONDS)

    @property
    def button(self):
        """The one button: whatever it says now."""
        return self.page.get_by_role("button", name=re.compile("^(Talk|Start|Stop|End)")).first

    def text(self, id: str) -> str:
        return self.page.locator(f"#{id}").inner_text()

    def wait(self, id: str, words: str) -> None:
        sync_api.expect(self.page.locator(f"#{id}")).to_contain_text(words, timeout=MILLISECONDS)

    def spoken(self) -> np.ndarray:
        """What the loudspeaker was given, once the last word has been followed by silence."""
        out = heard(self.page)
        while len(out) < 24000 or np.abs(out[-12000:]).max() > 0.01:
            self.page.wait_for_timeout(100)
            out = np.concatenate([out, heard(self.page)])
        return out

    def talk(self) -> Page:
        self.button.click()
        self.wait("status", "You are connected.")
        return self

    def stop(self) -> None:
        self.button.click()
        self.wait("status", "The talk has ended.")


# Talks ----------------------------------------------------------------------------------------------------------------


def test_it_answers_a_spoken_sum_twice(browser):
    """In words on the page and in the loudspeaker's signal, with a stop and a new talk between."""
    pytest.importorskip("pocketsphinx")
    sys.path.append(str(ROOT))
    from examples.train_demo.recogniser import Recogniser, heard_speech

    listener, answer = Recogniser("answer"), "three plus four is seven"
    with serve(DEMO_FOLDER, seed=1) as server, Page(browser) as p:
        came = frames(p.page, "framereceived")
        p.open(server)
        for number in (1, 2):
            assert p.button.inner_text().startswith("Talk")
            p.talk()
            assert p.button.inner_text().startswith("Stop")
            last = p.page.locator("#words p").nth(number - 1)
            sync_api.expect(last).to_have_text(answer, timeout=MILLISECONDS)
            spoken, said = p.spoken(), np.concatenate(came)
            assert heard_speech(listener, said, 24000) == answer
            # On a busy machine the loudspeaker gets the same with gaps.
            assert found_again(spoken, said) > 0.8
            came.clear()
            assert re.fullmatch(r"\d+ ms", p.text("latency"))
            assert re.fullmatch(r"\d+ ms", p.text("buffer"))
            assert p.text("dropped").isdigit()
            p.stop()
            server.wait_free()
        assert " ".join(p.text("words").split()) == f"{answer} {answer}"
        assert {u.split("/")[2] for u in p.requests} == {f"localhost:{server.port}"}


@pytest.mark.parametrize(
    ("scripts", "rate"),
    [
        pytest.param((TAP,), 24000, marks=pytest.mark.slow),
        pytest.param((TAP, NATIVE_RATE), 48000, marks=pytest.mark.slow),
        ((TAP, NO_OTHER_RATE), 44100),
    ],
)
def test_sound_survives_both_ways(browser, server, question, scripts, rate):
    """From the microphone through the worklets and the server to the loudspeaker, resampled where the browser has another rate."""
    with Page(browser, scripts) as p:
        p.open(server).talk()
        said, _ = soundfile.read(question, dtype="float32")
        out, begun = heard(p.page), time.monotonic()
        while (len(out) < 24000 or found_again(out, said) < 0.8) and time.monotonic() < begun + PATIENCE:
            p.page.wait_for_timeout(300)
            out = np.concatenate([out, heard(p.page)])
        assert found_again(out, said) > 0.8
        assert p.page.evaluate("window.heardRate") == rate
        p.stop()


def test_the_buffer_before_the_loudspeaker(browser, server):
    """It starts at 100 ms, grows by what was missing when it ran dry, gives time back in silence, and never holds more than 400 ms."""
    worklet = """async () => {
      globalThis.sampleRate = 24000;
      globalThis.AudioWorkletProcessor = class { constructor() { this.port = { postMessage: (told) => reports.push(told) }; } };
      globalThis.registerProcessor = (name, made) => (globalThis.Made = made);
      const reports = [], seen = {};
      await import("/resample.js");
      await import("/playback.js");
      const playback = new Made(), say = (frames, loud) => {
        for (let i = 0; i < frames; i++) playback.port.onmessage({ data: new Float32Array(1920).fill(loud) });
      };
      const play = (seconds) => {
        let loudest = 0;
        for (let i = 0; i < (seconds * 24000) / 128; i++) {
          const out = new Float32Array(128);
          playback.process([], [[out]]);
          loudest = Math.max(loudest, ...out.map(Math.abs));
        }
        return loudest;
      };
      say(1, 0.5);
      seen.early = play(0.2);
      say(1, 0.5);
      seen.begun = play(0.1);
      seen.whole = reports.at(-1) === undefined;
      play(0.2);  // dry after 60 ms more
      say(3, 0.5);
      seen.held = play(0.08);
      say(1, 0.5);
      seen.again = play(0.02);
      const level = () => playback.level / 24000;
      say(20, 0.5);
      seen.most = level();
      play(0.05);
      seen.reported = reports.at(-1);
      // Frames of silence arrive in time, behind more than is needed.
      say(2, 0);
      for (let i = 0; i < 60; i++) { say(1, 0); play(0.08); }
      seen.settled = level();
      seen.last = reports.at(-1);
      return seen;
    }"""
    with Page(browser) as p:
        p.open(server)
        seen = p.page.evaluate(worklet)
    assert (seen["early"], seen["begun"], seen["whole"]) == (0, 0.5, True)
    # It had run dry for more than 140 ms, and so begins again with more than the 240 ms of three frames.
    assert (seen["held"], seen["again"]) == (0, 0.5)
    assert 0.2 < seen["most"] <= 0.4
    assert seen["reported"]["underruns"] == 1 and 1.4 < seen["last"]["drops"] < 1.9
    assert seen["settled"] < 0.2 < seen["most"]


def frames(page, which: str) -> list[np.ndarray]:
    """Every frame of sound that the page sends (`framesent`) or gets (`framereceived`) from now on."""
    found: list[np.ndarray] = []

    def each(payload: bytes) -> None:
        if payload[0] == 1:
            found.append(np.frombuffer(payload[1:], "<i2").astype(np.float32) / 32767)

    page.on("websocket", lambda socket: socket.on(which, each))
    return found


def until(page, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def test_mute_new_conversation_and_save(browser, server, tmp_path):
    with Page(browser, accept_downloads=True) as p:
        sent = frames(p.page, "framesent")
        p.open(server)
        for name in ("Mute", "New conversation", "Save"):
            assert p.page.get_by_role("button", name=name).is_disabled()
        p.talk()
        until(p.page, lambda: any(np.abs(frame).max() > 0.1 for frame in sent))
        p.page.get_by_role("button", name="Mute").click()
        assert p.page.locator("#mute").get_attribute("aria-pressed") == "true"
        p.wait("status", "Moshi hears silence")
        muted = len(sent)
        until(p.page, lambda: len(sent) > muted + 3)
        # One may have been on its way.
        assert not np.any(sent[muted + 1 : muted + 4])
        p.page.get_by_role("button", name="Muted").click()
        p.wait("status", "You are connected.")
        p.page.get_by_role("button", name="New conversation").click()
        sync_api.expect(p.page.locator("#words p").nth(1)).to_contain_text("0 5 10", timeout=MILLISECONDS)
        downloads = []
        p.page.on("download", lambda d: downloads.append(d))
        p.stop()
        p.page.get_by_role("button", name="Save").click()
        until(p.page, lambda: len(downloads) == 2)
        p.wait("status", "Saved")
        saved = {Path(d.suggested_filename).suffix: tmp_path / d.suggested_filename for d in downloads}
        for d in downloads:
            d.save_as(tmp_path / d.suggested_filename)
    assert set(saved) == {".wav", ".vtt"}
    both, rate = soundfile.read(saved[".wav"])
    assert rate == 24000 and both.shape[1] == 2 and 0.8 < len(both) / rate < 60
    lines = saved[".vtt"].read_text().splitlines()
    assert lines[0] == "WEBVTT"
    assert re.fullmatch(r"00:00:0\d\.\d{3} --> 00:00:0\d\.\d{3}", lines[2])
    assert re.sub(r"<[^>]*>", "", lines[3]).startswith("0 5 10")


def test_what_is_saved(browser, server):
    """The user left, Moshi right where it was heard; asked for amid a talk of 25 s, which goes on, and at its end."""
    script = """async ([said, first, amid]) => {
      const { Recording } = await import("/recording.js");
      const talk = new Recording(), saved = [];
      const frame = (i, gain) => Float32Array.from({ length: 1920 }, (_, k) => gain * Math.sin(i + k / 9));
      for (let i = 0; i < said; i++) {
        talk.heard(frame(i, 1));
        if (i >= first && i !== 40) talk.said(frame(i, -0.5));
        if (i === amid || i === said - 1) saved.push(talk.wav());
      }
      const read = (wav) => new Promise((done) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result.split(",")[1]);
        reader.readAsDataURL(wav);
      });
      return Promise.all(saved.map(read));
    }"""
    with Page(browser) as p:
        p.open(server)
        saved = [base64.b64decode(wav) for wav in p.page.evaluate(script, [315, 3, 290])]
    t = np.arange(315 * 1920)
    left = np.sin(t // 1920 + t % 1920 / 9)
    for wav, frames in zip(saved, (291, 315), strict=True):
        both, rate = soundfile.read(io.BytesIO(wav))
        assert rate == 24000 and both.shape == (frames * 1920, 2)
        np.testing.assert_allclose(both[:, 0], left[: len(both)], atol=1e-4)
        # Nothing is said before the third frame; after a lost one all is heard a frame earlier.
        late = np.concatenate([np.zeros(3 * 1920), left[3 * 1920 : 40 * 1920], left[41 * 1920 :], np.zeros(1920)])
        late[(frames - 1) * 1920 :] = 0
        np.testing.assert_allclose(both[:, 1], -0.5 * late[: len(both)], atol=1e-4)


def test_words_are_whole_and_stay(browser):
    """Pieces of words are never shown; in the text there is nothing but words and spaces."""

    class Speller(Echo):
        pieces = [" hel", "lo", ", wor", "ld", ".", "", " It", "'s", " me", "."]

        def step(self, given):
            import dataclasses

            outcomes = super().step(given)
            for outcome in outcomes.values():
                outcome.items = [
                    dataclasses.replace(f, text=self.pieces[f.index] if f.index < len(self.pieces) else "")
                    for f in outcome.items
                ]
            return outcomes

    watch = """
      window.shown = new Set();
      addEventListener("DOMContentLoaded", () => {
        const words = document.getElementById("words");
        new MutationObserver(() => words.innerText.split(/\\s+/).forEach((w) => window.shown.add(w)))
          .observe(words, { childList: true, subtree: true, characterData: true });
      });
    """
    with Server(make=Speller) as s, Page(browser, (TAP, watch)) as p:
        p.open(s).talk()
        p.wait("words", "me.")
        p.stop()
        assert p.text("words") == "hello, world. It's me."
        assert set(p.page.evaluate("[...window.shown]")) - {""} == {"hello,", "world.", "It's", "me."}


# States and errors ----------------------------------------------------------------------------------------------------


def test_no_permission(browser, server):
    with Page(browser, permissions=()) as p:
        p.open(server)
        p.button.click()
        p.wait("problem", "may not use the microphone. Allow it")
        assert p.button.inner_text() == "Talk"
        assert not server.scheduler.live
        # Allowed after all, in the address bar.
        p.context.grant_permissions(["microphone"])
        p.talk()
        assert p.text("problem") == ""
        p.stop()


def test_no_microphone(playwright, server):
    chromium = launch(playwright)
    try:
        with Page(chromium) as p:
            p.open(server)
            p.button.click()
            p.wait("problem", "No microphone was found. Connect one")
            assert p.button.inner_text() == "Talk"
    finally:
        chromium.close()


def test_an_insecure_origin_is_explained(browser):
    with Server(hosts=guard.hosts(["moshi.test"])) as s, Page(browser, (), permissions=()) as p:
        p.open(s, host="moshi.test")
        p.button.click()
        p.wait("problem", "--ssl DIR")
        p.wait("problem", "mkcert")


def test_a_busy_server_tells_the_place_in_the_queue(browser):
    begun, leave = threading.Event(), threading.Event()

    async def occupy(s: Server) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(s.chat) as connection:
            await Client(connection).opened()
            begun.set()
            await asyncio.to_thread(leave.wait, PATIENCE)

    with Server() as s, Page(browser) as p:
        other = threading.Thread(target=lambda: asyncio.run(occupy(s)))
        other.start()
        assert begun.wait(PATIENCE)
        p.open(s)
        p.button.click()
        p.wait("status", "Moshi is in another talk; you are number 1 in the queue.")
        assert p.button.inner_text() == "Stop"
        # Who waits can leave the queue, and come again.
        p.stop()
        until(p.page, lambda: not s.scheduler.waiting)
        p.button.click()
        p.wait("status", "you are number 1 in the queue.")
        leave.set()
        p.wait("status", "You are connected.")
        other.join(PATIENCE)
        p.stop()


def test_a_server_that_is_gone(browser):
    with Server() as s, Page(browser) as p:
        p.open(s)
        s.stop()
        p.button.click()
        p.wait("problem", "The server does not answer. Is it still running?")
        assert p.button.inner_text() == "Talk"


def test_a_talk_that_is_refused_says_why(browser):
    """A browser tells a page nothing of it; the page asks."""

    def refuse(wishes):
        raise BadQuery("there is no voice 'NATX9'; known voices: NATF0.")

    with Server(options=refuse) as s, Page(browser) as p:
        p.open(s)
        p.button.click()
        p.wait("problem", "There is no voice 'NATX9'; known voices: NATF0.")
        assert p.button.inner_text() == "Talk"


def test_a_server_that_stops_amid_a_talk(browser):
    with Server() as s, Page(browser) as p:
        p.open(s).talk()
        s.stop()
        p.wait("problem", "The server stops.")
        assert p.button.inner_text() == "Talk"


def test_a_lost_connection_is_made_again(browser):
    """The words stay, the microphone stays open, and the user is told that the conversation is a new one."""
    watch = """
      window.said = [];
      addEventListener("DOMContentLoaded", () => {
        const status = document.getElementById("status");
        new MutationObserver(() => window.said.push(status.innerText)).observe(status, { childList: true });
      });
    """
    with Server() as s, Page(browser, (TAP, watch), accept_downloads=True) as p:
        downloads = []
        p.page.on("download", lambda d: downloads.append(d))
        p.open(s).talk()
        p.wait("words", "0 5")
        s.cut()
        p.wait("status", "Connected again. Moshi begins a new conversation.")
        assert "Connection lost. Trying again…" in p.page.evaluate("window.said")
        sync_api.expect(p.page.locator("#words p").nth(1)).to_contain_text("0 5", timeout=MILLISECONDS)
        assert "0 5" in p.page.locator("#words p").nth(0).inner_text()
        assert p.page.evaluate("window.tracks.length") == 1
        p.stop()
        # What was said before is saved as well.
        p.page.get_by_role("button", name="Save").click()
        until(p.page, lambda: len(downloads) == 2)
        saved = next(Path(d.path()).read_text() for d in downloads if d.suggested_filename.endswith(".vtt"))
        assert re.findall(r">(?:<c> )?(\d+)", saved).count("0") == 2


def test_a_model_that_cannot_keep_up(browser):
    """Told, counted, and the page stays usable."""
    with Server(make=lambda: Echo(1, seconds=0.2, most=0.25)) as s, Page(browser) as p:
        p.open(s).talk()
        p.wait("status", "Moshi is too slow on this machine: it takes 2")
        sync_api.expect(p.page.locator("#dropped")).to_have_text(re.compile("^[1-9]"), timeout=MILLISECONDS)
        assert "bad" in p.page.locator("#dropped").get_attribute("class")
        p.page.get_by_role("button", name="Mute").click()
        p.stop()


def test_a_network_that_is_slow(browser, server):
    """Told; and what it does not take is left out and counted."""
    slow = """
      const send = WebSocket.prototype.send;
      WebSocket.prototype.send = function (data) { setTimeout(() => send.call(this, data), 1100); };
    """
    with Page(browser, (TAP, slow)) as p:
        p.open(server).talk()
        p.wait("status", "The network is slow: each of you hears the other 1.")
        p.wait("dropped", "0")
        p.page.evaluate("Object.defineProperty(WebSocket.prototype, 'bufferedAmount', { get: () => 50000 })")
        sync_api.expect(p.page.locator("#dropped")).to_have_text(re.compile("^[1-9]"), timeout=MILLISECONDS)
        p.stop()


def test_a_model_that_fails(browser):
    class Fails(Echo):
        def step(self, given):
            raise RuntimeError("secret")

    with Server(make=Fails) as s, Page(browser) as p:
        p.open(s)
        p.button.click()
        p.wait("problem", "The model failed; the server's log says why.")


def test_the_token_of_the_link(browser):
    """Out of the address bar at once, kept for the tab, sent with everything; without it the page says what is missing."""
    with Server(token=TOKEN) as s:
        with Page(browser) as p:
            p.open(s)
            p.wait("problem", "wants a token. Open the link that it printed")
            p.open(s, f"/?token={TOKEN}")
            assert p.page.url == f"http://localhost:{s.port}/"
            assert p.page.evaluate("sessionStorage.getItem('token')") == TOKEN
        with Page(browser) as p:
            p.open(s, f"/#token={TOKEN}").talk()
            assert p.page.url == f"http://localhost:{s.port}/"
            assert p.page.evaluate("history.length") <= 2
            p.stop()
            p.page.reload()
            p.talk().stop()
            assert not any(TOKEN in u for u in p.requests[1:])


def test_a_phone_in_the_same_network(browser, tmp_path):
    """`--host 0.0.0.0 --ssl DIR`: by this machine's address and the link's token."""
    tls = door.tls_context(str(certificate(tmp_path / "tls")))
    address = door.lan_address() or "127.0.0.1"
    everywhere = {"host": "0.0.0.0", "any_address": True, "hosts": set()}
    with (
        Server(token=TOKEN, tls=tls, **everywhere) as s,
        Page(browser, viewport=PHONE, ignore_https_errors=True, has_touch=True) as p,
    ):
        p.open(s, f"/#token={TOKEN}", host=address).talk()
        p.wait("words", "0 5")
        p.stop()


# Settings -------------------------------------------------------------------------------------------------------------


def test_recording_is_told_before_the_talk(browser, server):
    with Page(browser) as p:
        p.open(server)
        assert p.text("model") == "echo"
        assert not p.page.locator("#recorded").is_visible()
    with Server(about=About(model="echo", recording=True)) as s, Page(browser) as p:
        p.open(s)
        assert "keeps a recording of every talk" in p.text("recorded")
        assert p.page.locator("#recorded").is_visible()
        assert not p.page.get_by_text("Nothing said is stored").is_visible()


def test_voice_role_and_sampling_reach_the_model_and_are_remembered(browser):
    class Reading(Echo):
        def join(self, row, options):
            yield from super().join(row, options)
            for _ in range(20):
                time.sleep(0.02)
                yield

    about = About(
        model="personaplex",
        persona=True,
        voices=["NATF0", "NATM1"],
        sampling={"text_temperature": 0.7, "audio_topk": 250},
    )
    with Server(make=Reading, about=about) as s, Page(browser) as p:
        kind = s.scheduler.call(lambda k: k).result()
        p.open(s)
        assert p.page.get_by_label("Text temperature").is_hidden()
        p.page.get_by_text("Sampling", exact=True).click()
        assert p.page.get_by_label("Text temperature").get_attribute("placeholder") == "0.7"
        p.page.get_by_label("Text temperature").fill("9")
        p.button.click()
        p.wait("problem", "One of the sampling settings is out of its range.")
        p.page.get_by_label("Text temperature").fill("0.5")
        p.page.get_by_label("Audio top-k").fill("30")
        p.page.get_by_label("Reticence").fill("-1.5")
        p.page.get_by_label("Repetition penalty").fill("1.3")
        p.page.get_by_label("Seed").fill("7")
        p.page.get_by_text("Voice and role").click()
        p.page.locator("#voice").select_option("NATM1")
        p.page.get_by_label("Role").fill("You sell fish.")
        p.button.click()
        p.wait("status", "Moshi takes in its voice and its role…")
        p.wait("status", "You are connected.")
        p.stop()
        p.page.reload()
        p.talk().stop()
        for wishes in kind.options:
            assert (wishes.text_temperature, wishes.audio_topk, wishes.pad_bias) == (0.5, 30, -1.5)
            assert (wishes.repetition_penalty, wishes.repetition_context) == (1.3, 64)
            assert (wishes.text_seed, wishes.audio_seed) == (7, 7)
            assert (wishes.voice, wishes.role) == ("NATM1", "You sell fish.")
            assert wishes.audio_temperature is None


def test_impatience_loses_no_settings(browser, server):
    """The button can be pressed from when the kept settings are back, however long the server takes."""
    with Page(browser) as p:
        p.open(server)
        p.page.get_by_text("Sampling", exact=True).click()
        p.page.get_by_label("Seed").fill("7")
        p.talk().stop()
        held = []
        p.page.route("**/api/about", lambda route: held.append(route))
        p.page.reload()
        until(p.page, lambda: bool(held))
        p.page.locator("#talk").click(force=True)
        assert p.page.locator("body").get_attribute("data-state") == "idle"
        assert p.button.is_disabled()
        held[0].continue_()
        p.learned()
        p.page.get_by_text("Sampling", exact=True).click()
        assert p.page.get_by_label("Seed").input_value() == "7"
        p.talk().stop()


def test_devices_of_a_talk(browser, server):
    """What the browser has given; another microphone, and none; a loudspeaker that waits for a tap; nothing open afterwards."""
    with Page(browser) as p:
        p.open(server).talk()
        p.page.get_by_text("Microphone and sound").click()
        sync_api.expect(p.page.locator("#microphone option").nth(1)).to_be_attached(timeout=MILLISECONDS)
        assert p.text("echo-given") in ("given", "not given")
        p.page.get_by_label("Echo cancellation").uncheck()
        p.wait("status", "The microphone has been changed.")
        p.wait("echo-given", "not given")
        p.page.evaluate("window.tracks.at(-1).stop(); window.tracks.at(-1).onended()")
        p.wait("status", "The microphone went away; another one is used.")
        assert p.page.evaluate("window.tracks.length") == 3
        assert not p.page.locator("#hear").is_visible()
        p.page.evaluate("window.contexts[0].suspend()")
        p.page.get_by_role("button", name="Tap to hear").click()
        sync_api.expect(p.page.locator("#hear")).to_be_hidden(timeout=MILLISECONDS)
        assert p.page.evaluate("window.contexts[0].state") == "running"
        # The talk has gone on all the time.
        p.wait("words", "0 5 10")
        p.stop()
        assert p.page.evaluate("window.tracks.map((t) => t.readyState)") == ["ended"] * 3
        p.page.wait_for_function("window.contexts.every((c) => c.state === 'closed')")
        server.wait_free()


# Looks and access -----------------------------------------------------------------------------------------------------


def test_by_keyboard_and_by_ear(browser, server):
    """A talk without a mouse, with less motion; and what a screen reader is told of it."""
    with Page(browser, reduced_motion="reduce") as p:
        p.open(server)
        words = p.page.get_by_role("log", name="What Moshi says")
        assert words.get_attribute("aria-live") == "polite"
        for name in ("You", "Moshi"):
            assert p.page.get_by_role("meter", name=name).get_attribute("aria-valuetext") == "silent"
        assert p.page.locator("html").get_attribute("lang") == "en"
        unnamed = "[...document.querySelectorAll('button, input, select, textarea')].filter((e) => !(e.labels?.length || e.innerText.trim()))"
        assert p.page.evaluate(f"{unnamed}.length") == 0
        p.page.keyboard.press("Tab")
        assert p.page.evaluate("document.activeElement.id") == "talk"
        assert p.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        p.page.keyboard.press("Enter")
        p.wait("status", "You are connected.")
        seen = []
        for _ in range(6):
            p.page.keyboard.press("Tab")
            seen.append(p.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert seen[:2] == ["mute", "again"]
        assert "SUMMARY" in seen
        p.wait("words", "0")
        for moving in ("#words span", ".dot"):
            assert p.page.evaluate(f"getComputedStyle(document.querySelector('{moving}')).animationName") == "none"
        # A word that is heard is told whole, and only once.
        assert words.locator("span").first.inner_text() == "0"
        p.page.locator("#talk").focus()
        p.page.keyboard.press("Space")
        p.wait("status", "The talk has ended.")


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast(scheme):
    """WCAG AA, 4.5 to 1, for every colour that text is set in, and 3 to 1 for the edges of fields."""
    css = (pages.PAGE_FOLDER / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6}|#fff);", blocks[0]))
    if scheme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6}|#fff);", blocks[1]))
    colours = {k: "#ffffff" if v == "#fff" else v for k, v in colours.items()}
    pairs = [(ink, ground) for ink in ("ink", "soft", "moshi", "you") for ground in ("ground", "sheet")]
    pairs += [
        ("edge", "ground"),
        ("edge", "sheet"),
        ("alarm", "alarm-ground"),
        ("alarm", "sheet"),
        ("on-strong", "moshi"),
        ("on-strong", "you"),
    ]
    for one, other in pairs:
        high, low = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= (3 if one == "edge" else 4.5), (one, other)


# Texts of less than 4.5 to 1, as they are drawn.
FAINT = """(() => {
  const channels = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = channels(c).map((x) => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    const c = e ? getComputedStyle(e).backgroundColor : "rgb(255, 255, 255)";
    return e && channels(c)[3] === 0 ? ground(e.parentElement) : c;
  };
  const faint = [];
  for (const e of document.querySelectorAll("body *")) {
    const pseudo = e.placeholder ? "::placeholder" : null;
    const text = pseudo || [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || !e.checkVisibility() || e.disabled || e.closest("option")) continue;
    const [low, high] = [light(getComputedStyle(e, pseudo).color), light(ground(e))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(e.id || e.outerHTML);
  }
  return faint;
})()"""


def test_nothing_is_cut_off(browser, server):
    """No sideways scrolling, the button in sight, large enough for a thumb, and all of it in one scheme that can be read."""
    views = [
        (DESKTOP, "light"),
        (PHONE, "dark"),
        ({"width": 320, "height": 568}, "light"),
        ({"width": 667, "height": 375}, "dark"),
    ]
    with Page(browser) as p:
        for viewport, scheme in views:
            p.page.set_viewport_size(viewport)
            p.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            p.open(server)
            assert p.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), viewport
            box = p.button.bounding_box()
            assert box["y"] + box["height"] <= viewport["height"], viewport
            assert box["height"] >= 44
            ground = p.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            bright = sum(map(int, re.findall(r"\d+", ground)[:3])) > 384
            assert bright == (scheme == "light")
            for summary in p.page.locator("summary").all():
                if summary.is_visible():
                    summary.click()
            assert p.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), viewport
            assert p.page.evaluate(FAINT) == [], viewport
