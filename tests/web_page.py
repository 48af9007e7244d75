"""A real browser for tests: Chromium of the system, a recording as its microphone, and what its loudspeaker is given."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

NAMES = ("chromium", "google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
RATE = 24000
SCHEMES = ("light", "dark")

# What goes to the loudspeaker is also kept: `heard` from the first sound on, at `heardRate`.
TAP = """
const encode = (x) => btoa(String.fromCharCode(...new Uint8Array(x.slice().buffer)));
window.heard = []; window.contexts = []; window.tracks = [];
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode && !(this instanceof ScriptProcessorNode)) {
    window.heardRate = this.context.sampleRate;
    window.contexts.push(this.context);
    const tap = this.context.createScriptProcessor(4096, 1, 1);
    tap.onaudioprocess = (e) => window.heard.push(encode(e.inputBuffer.getChannelData(0)));
    connect.call(this, tap);
    connect.call(tap, target);
  }
  return connect.call(this, target, ...rest);
};
const ask = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
if (ask) navigator.mediaDevices.getUserMedia = async (wishes) => {
  const stream = await ask(wishes);
  window.tracks.push(...stream.getTracks());
  return stream;
};
"""
# A browser that gives contexts the rate of its device, whatever it is asked for.
NATIVE_RATE = (
    "window.AudioContext = class extends AudioContext { constructor(o) { super({ ...o, sampleRate: 48000 }); } };"
)


def need_browser():
    """Playwright, or a skipped module."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine", allow_module_level=True)
    return sync_api


def microphone(path: Path, pcm: np.ndarray) -> Path:
    """A recording for the fake microphone, which plays it once from when it is opened."""
    soundfile.write(path, pcm, RATE, subtype="PCM_16")
    return path


def launch(playwright, wav: Path | None = None):
    """Rules of autoplay and permission are those of the browser; `wav` None: no microphone at all. moshi.test is this machine."""
    fake = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={wav}%noloop"] if wav else []
    return playwright.chromium.launch(
        executable_path=CHROMIUM,
        args=["--no-sandbox", "--host-resolver-rules=MAP moshi.test 127.0.0.1", *fake],
    )


def heard(page) -> np.ndarray:
    """What the loudspeaker was given so far, at 24 kHz."""
    import soxr

    blocks = page.evaluate("window.heard.splice(0)")
    pcm = np.frombuffer(b"".join(map(base64.b64decode, blocks)), np.float32)
    return soxr.resample(pcm, page.evaluate("window.heardRate ?? 24000"), RATE) if len(pcm) else pcm
