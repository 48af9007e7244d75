"""A folder run by Python: what the C library does, in its plainest form. The reference for it, and a way to look into a folder.

session = ExportedSession.load("folder")
frame = session.step(pcm)          # as moshi_mlx.session.Session
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..config.json_text import read_json
from ..errors import CheckpointError, InputError
from ..session.reply import Frame
from ..text import Detokenizer, check_pending, pack_pending
from .folder import FORMAT, MANIFEST, arrays_of
from .function import MLX_VERSION, SAMPLING, STATE, Arrays
from .text import PieceTable


class Exported:
    """The functions and weights of a folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / MANIFEST)
        self._check()
        self.fixed = arrays_of(self.folder / self.manifest["weights"])
        self._functions: dict[str, Any] = {
            name: mx.import_function(str(self.folder / function["file"]))
            for name, function in self.manifest["functions"].items()
        }

    def _check(self) -> None:
        found, device = self.manifest, mx.default_device().type.name
        if found.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.folder} has the format {found.get('format')}, expected {FORMAT}; export it anew."
            )
        if found["mlx"] != MLX_VERSION:
            raise CheckpointError(
                f"{self.folder} was written by MLX {found['mlx']}, this is {MLX_VERSION}; export it anew."
            )
        if found["device"] != device:
            raise CheckpointError(
                f"{self.folder} was written for the {found['device']}, this is a {device}; export it here."
            )
        for name, file in found["files"].items():
            path = self.folder / name
            if Path(name).name != name or not path.is_file() or path.stat().st_size != file["bytes"]:
                raise CheckpointError(f"{path} is missing or not as long as the manifest says; export it anew.")

    def __contains__(self, function: str) -> bool:
        return function in self._functions

    def call(self, function: str, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Results and the new state of one call; nothing is evaluated. `state` is emptied: rings are written in place."""
        arrays = {**self.fixed, **state, **inputs}
        names = sorted(state)
        state.clear()
        out = self._functions[function]([], arrays)
        results = self.manifest["functions"][function]["results"]
        return dict(zip(results, out, strict=False)), dict(zip(names, out[len(results) :], strict=True))

    def start(self, name: str | None = None) -> Arrays:
        """A fresh state; `name` chooses among several starts."""
        starts = self.manifest["starts"]
        start = starts[0] if name is None else next((s for s in starts if s["name"] == name), None)
        if start is None:
            raise InputError(f"{self.folder} has the voices {', '.join(s['name'] for s in starts)}; found {name!r}.")
        return self.with_capacity(arrays_of(self.folder / start["file"]), start["capacity"])

    def with_capacity(self, state: Arrays, capacity: int) -> Arrays:
        """`state` with rings of `capacity` slots, the new ones empty."""
        rings = self.manifest["rings"]
        if rings is None:
            return state

        def grown(array: mx.array) -> mx.array:
            widths = [(0, 0)] * array.ndim
            widths[rings["axis"]] = (0, capacity - array.shape[rings["axis"]])
            return mx.pad(array, widths)

        return {name: grown(array) if name in rings["names"] else array for name, array in state.items()}

    def capacity(self, state: Arrays) -> int:
        rings = self.manifest["rings"]
        return state[rings["names"][0]].shape[rings["axis"]]


class ExportedSession:
    """One conversation with an exported model, on the thread that made it. `seed` and sampling as for a `Session`."""

    batch = 1

    def __init__(self, exported: Exported, *, seed: int = 0, start: str | None = None, **sampling: float):
        self.exported, self.seed, self._start = exported, seed, start
        self._sampling: Arrays = {}
        self.set_sampling(**sampling)
        self.reset()

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> ExportedSession:
        return cls(Exported(folder), **options)

    @property
    def frame_size(self) -> int:
        return self.exported.manifest["audio"]["frame_size"]

    @property
    def sample_rate(self) -> int:
        return self.exported.manifest["audio"]["sample_rate"]

    def set_sampling(self, **numbers: float) -> None:
        """`temp`, `temp_text`, `top_k`, `top_k_text` from the next frame on; what is not given is the checkpoint's."""
        defaults = self.exported.manifest["sampling"]
        limits = defaults["limits"]
        if unknown := sorted(numbers.keys() - (defaults.keys() - {"limits"})):
            raise InputError(f"sampling has temp, temp_text, top_k and top_k_text, found {', '.join(unknown)}.")
        chosen = {**{n: v for n, v in defaults.items() if n != "limits"}, **numbers}
        for name, limit in limits.items():
            if limit["most"] < chosen[name] < limit["all"]:
                raise InputError(f"{name} should be 0 to {limit['most']}, found {chosen[name]}.")
            chosen[name] = chosen[name] if chosen[name] < limit["all"] else 0
        self._sampling = {
            SAMPLING + name: mx.array(value, mx.int32 if name in limits else mx.float32)
            for name, value in chosen.items()
        }

    def reset(self, seed: int | None = None) -> None:
        """Begin a new conversation."""
        self.seed = self.seed if seed is None else seed
        state = self.exported.start(self._start)
        state[f"{STATE}lm.seed"] = mx.array([self.seed % 2**32], mx.uint32)
        _, self._state = self.exported.call("first", state, self._sampling)
        mx.eval(self._state)
        self._first = self._steps = self._offset()
        self._start_text()

    def _offset(self) -> int:
        return int(np.array(self._state[f"{STATE}lm.offset"]))

    def _start_text(self) -> None:
        described = self.exported.manifest["text"]
        self._text = None if described is None else Detokenizer(PieceTable(described))  # type: ignore[arg-type]

    @property
    def state(self) -> Arrays:
        """The conversation by the names of a conversation file."""
        flat = {name.removeprefix(STATE): array for name, array in self._state.items()}
        return {**flat, "text": pack_pending([] if self._text is None else [self._text.pending])}

    @state.setter
    def state(self, state: Arrays) -> None:
        state = dict(state)
        pending = state.pop("text", None)
        self._state = {STATE + name: array for name, array in state.items()}
        self._steps = self._offset()
        self._start_text()
        unfinished = [] if pending is None else check_pending(pending, 1)
        if self._text is not None and unfinished:
            self._text.pending = unfinished[0]

    @property
    def frames(self) -> int:
        return self._steps - self._first

    def step(self, pcm: np.ndarray, ended: bool = False) -> Frame:
        """The user's next 80 ms, float `[1920]` -> `Frame`, with the probabilities of the pause heads in `pauses`."""
        inputs = {"pcm": mx.array(np.asarray(pcm, np.float32)[None]), **self._sampling}
        if ended:
            inputs["ended"] = mx.array([True])
        manifest = self.exported.manifest
        capacity, sizes = self.exported.capacity(self._state), manifest["rings"]["capacities"]
        if self._steps >= capacity and capacity < sizes[-1]:
            larger = next(c for c in sizes if c > capacity)
            self._state = self.exported.with_capacity(self._state, larger)
        replies = "frame" in self.exported and self._steps + 1 > max(manifest["tokens"]["delays"])
        out, self._state = self.exported.call("frame" if replies else "hear", self._state, inputs)
        mx.eval(self._state, out)
        self._steps += 1
        tokens = np.array(out["tokens"])[0]
        text = "" if self._text is None else self._text.feed(int(tokens[0]))
        sound = np.array(out["pcm"])[0] if "pcm" in out else np.zeros(self.frame_size, np.float32)
        index = self.frames - 1
        self.pauses = np.array(out["pauses"].astype(mx.float32))[0] if "pauses" in out else np.zeros(0, np.float32)
        return Frame(sound, text, int(tokens[0]), tokens[1:], index, index / manifest["audio"]["frame_rate"])
