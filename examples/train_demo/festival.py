"""festival in a process of its own: mono samples with word and phone onsets."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from moshi_mlx.errors import MoshiError

from . import phones
from .speech import Utterance, utterance

VOICES = ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")


class Festival:
    """The synthesiser, told what to do line by line."""

    def __init__(self):
        if shutil.which("festival") is None:
            raise MoshiError(
                "festival not found; install it: apt install festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts"
            )
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            ["festival", "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._voice = ""

    def _do(self, command: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f'{command}\n(format t "\\ndone\\n")\n(fflush nil)\n')
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.strip() == "done":
                return
        raise MoshiError(f"festival ended at {command[:100]!r}")

    def say(self, text: str, voice: str, stretch: float = 1.0) -> Utterance:
        """Speak `text` with one of `VOICES`, `stretch` times as slowly as it is used to (diphone voices only)."""
        if voice != self._voice:
            self._do(f"(voice_{voice})")
            self._voice = voice
        base = Path(self._folder.name) / "said"
        plain = text.replace('"', "").replace("\\", "")
        self._do(
            f'(begin (Parameter.set \'Duration_Stretch {stretch:.3f}) (set! u (SynthText "{plain}"))'
            f' (utt.save.wave u "{base}.wav" \'riff) (utt.save.words u "{base}.words") (utt.save.segs u "{base}.segs"))'
        )
        rate, raw = wavfile.read(f"{base}.wav")
        sounds, at = [], 0.0
        for end, name in _labels(Path(f"{base}.segs")):
            sounds.append((phones.of_festival(name), at))
            at = end
        # A word begins where the one before ends, or after the silence that follows that.
        silences = {s: e for (_, s), (name, e) in zip(sounds, [*sounds[1:], ("_", at)], strict=True) if _ == "_"}
        words, begin = [], 0.0
        for end, name in _labels(Path(f"{base}.words")):
            while begin in silences:
                begin = silences[begin]
            words.append((name, begin))
            begin = end
        return utterance(text, np.asarray(raw), rate, words, sounds)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def _labels(path: Path) -> list[tuple[float, str]]:
    """(end in seconds, name) of each line of a label file."""
    lines = path.read_text().split("#\n", 1)[1].splitlines()
    return [(float(end), name) for end, _, name in (line.split() for line in lines if line.strip())]
