"""Pictures of the running demo: its page on a desk and in a hand, in light and dark, and its terminal.

    pip install playwright pyte; python docs/images/page.py

Needs Chromium. The page's microphone and the terminal's are the recording of a question; what is seen is what came back.
"""

from __future__ import annotations

import fcntl
import html
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import numpy as np
import pyte
import soundfile
from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
QUESTION = ROOT / "moshi_mlx" / "demo" / "prompts" / "sum.flac"
ANSWER = "three plus four is"
VIEWS = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
COLUMNS, ROWS = 104, 15
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
  body { margin: 0; padding: 28px; background: #dfe8e9; display: inline-block; }
  div { background: #0f1a1e; border-radius: 10px; box-shadow: 0 12px 32px #0f1a1e40; padding: 14px 20px 20px; }
  i { display: inline-block; width: 12px; height: 12px; border-radius: 50%; background: #33474e; margin-right: 7px; }
  pre { margin: 14px 0 0; color: #d7e3e5; font: 15px/1.45 "SF Mono", Menlo, "JetBrains Mono", "DejaVu Sans Mono", monospace; }
</style><div><i></i><i></i><i></i><pre>SCREEN</pre></div>"""
COLOURS = {
    "default": "inherit", "black": "#33474e", "red": "#ff7d6b", "green": "#7fd6a4", "brown": "#e8c37a", "yellow": "#e8c37a",
    "blue": "#6fb3ff", "magenta": "#d39bff", "cyan": "#62c9da", "white": "#f2f8f9",
}  # fmt: skip


def pages(browser: Browser, link: str) -> None:
    for name, viewport in VIEWS.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(
                viewport=viewport, color_scheme=scheme, device_scale_factor=2 if name == "phone" else 1
            )
            page.goto(link)
            page.get_by_role("button", name="Talk").click()
            page.get_by_text(ANSWER).wait_for()
            page.mouse.move(0, 0)
            page.wait_for_timeout(150)
            page.screenshot(path=HERE / f"page-{name}-{scheme}.png")
            page.close()


def screen(folder: Path) -> pyte.Screen:
    """The terminal when the answer is half spoken."""
    shown = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(shown)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    talk = subprocess.Popen(
        [sys.executable, "-m", "moshi_mlx.local", "--demo", "--input", "sum.flac", "--output", "reply.wav"],
        stdin=slave, stdout=slave, stderr=slave, cwd=folder, env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    stream.feed(b"$ python -m moshi_mlx.local --demo --input sum.flac --output reply.wav\r\n")
    said, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline and ANSWER not in "\n".join(shown.display):
        if select.select([master], [], [], 0.2)[0]:
            said += os.read(master, 65536)
        # Where this copy of the package lies is nobody's business.
        whole, newline, said = said.rpartition(b"\n")
        stream.feed((whole + newline).replace(f"{ROOT}/".encode(), b""))
    stream.feed(said)
    talk.terminate()
    talk.wait()
    os.close(slave)
    os.close(master)
    return shown


def as_html(shown: pyte.Screen) -> str:
    lines = []
    used = max(y for y, line in enumerate(shown.display) if line.strip())
    for y in range(used + 1):
        parts = []
        for x in range(COLUMNS):
            cell = shown.buffer[y][x]
            ink = COLOURS.get(cell.fg.removeprefix("bright"), f"#{cell.fg}")
            weight = ";font-weight:700" if cell.bold else ""
            parts.append(f'<span style="color:{ink}{weight}">{html.escape(cell.data)}</span>')
        lines.append("".join(parts))
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        pcm, rate = soundfile.read(QUESTION, dtype="float32")
        soundfile.write(folder / "microphone.wav", np.concatenate([np.zeros(rate, np.float32), pcm]), rate)
        shutil.copy(QUESTION, folder)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=[
                "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}%noloop",
            ],
        )  # fmt: skip
        server = subprocess.Popen(
            [sys.executable, "-m", "moshi_mlx.local_web", "--demo", "--no-browser", "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            assert server.stderr is not None
            link = next(line for line in server.stderr if line.startswith("talk at ")).split()[-1]
            pages(browser, link)
        finally:
            server.terminate()
            server.wait()
        page = browser.new_page(device_scale_factor=1.5)
        page.set_content(TERMINAL.replace("SCREEN", as_html(screen(folder))))
        page.locator("body").screenshot(path=HERE / "terminal.png")
        browser.close()


if __name__ == "__main__":
    main()
