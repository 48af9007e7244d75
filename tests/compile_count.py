"""What the frames of a conversation have compiled, counted: `python compile_count.py CHECKPOINT [OPTION=VALUE ...]`.

Prints, for the making of a session and for its frames after that, how often a Python function of the model was traced and how many kernels MLX
built or loaded. A process of its own, in which nothing is compiled yet.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from moshi_mlx.engine import step as step_module
from moshi_mlx.models.lm_model import LmModel
from moshi_mlx.models.mimi_model import MimiModel
from moshi_mlx.session import Session

step_module.FIRST_CAPACITY = 64
traced = 0


def count(cls: type, name: str) -> None:
    """Count calls of a method, which compiled functions make only while they are traced."""
    method = getattr(cls, name)

    def counted(*args, **kwargs):
        global traced
        traced += 1
        return method(*args, **kwargs)

    setattr(cls, name, counted)


def kernels() -> int:
    """Libraries of MLX's CPU kernels in this process, each the product of one compilation."""
    return len(
        {
            line.split()[-1]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "/mlx/" in line and "/cpu/lib" in line
        }
    )


count(LmModel, "embed")
count(MimiModel, "encode_chunk")
count(MimiModel, "decode_chunk")
options = {name: int(value) for name, value in (option.split("=") for option in sys.argv[2:])}
frames, ends = options.pop("frames"), options.pop("ends", 0)
session = Session.load(sys.argv[1], **options)
made = traced, kernels()
pcm = 0.1 * np.random.default_rng(0).standard_normal((session.batch, 1920)).astype(np.float32)
later = np.zeros(2, int)


def talk(frames: int) -> None:
    """Frames, and what each of them compiled."""
    global later
    for t in range(frames):
        before = traced, kernels()
        session.step(pcm, ended=ends > 0 and t == ends)
        later += np.subtract((traced, kernels()), before)


talk(frames)
# A prompt is read at once, outside of frames.
session.reset(seed=5)
talk(3)
print(*made)
print(*later)
