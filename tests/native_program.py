"""A program without MLX of its own that does with libmoshi, by ctypes, what a job on its standard input says. Prints what came of it as JSON.

{"library": "libmoshi.so", "sound": "pcm.npy", "out": "reply.npz", "models": ["folder", ...], "actions": [["step", 20], ...]}
"""

from __future__ import annotations

import ctypes as c
import json
import sys
import time

import numpy as np

ENDED = 1
_floats, _ints = c.POINTER(c.c_float), c.POINTER(c.c_int32)


class _Sized(c.Structure):
    def __init__(self, **values):
        super().__init__(size=c.sizeof(self), **values)


class Options(_Sized):
    _fields_ = [
        ("size", c.c_uint32), ("seed", c.c_uint32), ("temp", c.c_float), ("temp_text", c.c_float), ("top_k", c.c_int32),
        ("top_k_text", c.c_int32), ("start", c.c_int32),
    ]  # fmt: skip


class Frame(_Sized):
    _fields_ = [
        ("size", c.c_uint32), ("samples", c.c_int32), ("pcm", _floats), ("code_count", c.c_int32), ("text_token", c.c_int32),
        ("codes", _ints), ("text", c.c_char_p), ("pauses", _floats), ("pause_count", c.c_int32), ("complete", c.c_int32),
        ("index", c.c_int64), ("time", c.c_double), ("milliseconds", c.c_double),
    ]  # fmt: skip


class Word(_Sized):
    _fields_ = [("size", c.c_uint32), ("text", c.c_char_p), ("start", c.c_double), ("end", c.c_double)]


class Info(_Sized):
    _fields_ = [
        ("size", c.c_uint32), ("sample_rate", c.c_int32), ("frame_size", c.c_int32), ("codebooks", c.c_int32), ("type", c.c_char_p),
        ("source", c.c_char_p), ("license", c.c_char_p), ("precision", c.c_char_p), ("mlx", c.c_char_p), ("bytes", c.c_uint64),
        ("starts", c.c_int32), ("pause_heads", c.c_int32), ("is_translation", c.c_int32), ("keeps_last", c.c_int32),
        ("tail_seconds", c.c_double), ("delay_seconds", c.c_double), ("prefix_seconds", c.c_double),
        ("pad_token", c.c_int32),
    ]  # fmt: skip


PROGRESS = c.CFUNCTYPE(None, c.c_uint64, c.c_uint64, c.c_void_p)
LOG = c.CFUNCTYPE(None, c.c_int32, c.c_char_p, c.c_void_p)
_POINTER, _TEXT, _INT = c.c_void_p, c.c_char_p, c.c_int32
FUNCTIONS = {
    "moshi_abi": (_INT, []),
    "moshi_version": (_TEXT, []),
    "moshi_error": (_TEXT, []),
    "moshi_set_log": (None, [LOG, _POINTER]),
    "moshi_load": (_POINTER, [_TEXT, PROGRESS, _POINTER]),
    "moshi_free": (None, [_POINTER]),
    "moshi_verify": (_INT, [_TEXT]),
    "moshi_describe": (_INT, [_POINTER, c.POINTER(Info)]),
    "moshi_start_name": (_TEXT, [_POINTER, _INT]),
    "moshi_default_options": (_INT, [_POINTER, c.POINTER(Options)]),
    "moshi_session_new": (_POINTER, [_POINTER, c.POINTER(Options)]),
    "moshi_session_free": (None, [_POINTER]),
    "moshi_reset": (_INT, [_POINTER, c.POINTER(Options)]),
    "moshi_set_sampling": (_INT, [_POINTER, c.POINTER(Options)]),
    "moshi_step": (_INT, [_POINTER, _floats, _INT, c.POINTER(Frame)]),
    "moshi_next_word": (_INT, [_POINTER, c.POINTER(Word)]),
    "moshi_flush": (_INT, [_POINTER]),
    "moshi_save": (_INT, [_POINTER, _TEXT]),
    "moshi_restore": (_INT, [_POINTER, _TEXT]),
    "moshi_encode": (_INT, [_POINTER, _floats, _ints]),
    "moshi_decode": (_INT, [_POINTER, _ints, _floats]),
}


class MoshiError(Exception):
    pass


def library(path: str) -> c.CDLL:
    lib = c.CDLL(path)
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Model:
    def __init__(self, lib: c.CDLL, folder: str):
        self.lib = lib
        self.handle = lib.moshi_load(folder.encode(), PROGRESS(), None)
        if not self.handle:
            self.fail()
        self.info = Info()
        self.check(lib.moshi_describe(self.handle, self.info))

    def fail(self):
        raise MoshiError(self.lib.moshi_error().decode())

    def check(self, status: int) -> int:
        if status < 0:
            self.fail()
        return status

    def options(self, **changes) -> Options:
        options = Options()
        self.check(self.lib.moshi_default_options(self.handle, options))
        for name, value in changes.items():
            setattr(options, name, value)
        return options

    def free(self):
        self.lib.moshi_free(self.handle)


class Session:
    def __init__(self, model: Model, **options):
        self.model, self.lib = model, model.lib
        self.handle = self.lib.moshi_session_new(model.handle, model.options(**options))
        if not self.handle:
            model.fail()

    def step(self, pcm: np.ndarray, flags: int = 0) -> dict:
        """One frame, everything copied."""
        frame = Frame()
        pcm = np.ascontiguousarray(pcm, np.float32)
        self.model.check(self.lib.moshi_step(self.handle, pcm.ctypes.data_as(_floats), flags, frame))
        return {
            "pcm": np.ctypeslib.as_array(frame.pcm, (frame.samples,)).copy()
            if frame.samples
            else np.zeros(0, np.float32),
            "tokens": [frame.text_token, *frame.codes[: frame.code_count]],
            "text": frame.text.decode(),
            "pauses": frame.pauses[: frame.pause_count],
            "complete": frame.complete,
            "index": frame.index,
            "time": frame.time,
            "milliseconds": frame.milliseconds,
        }

    def words(self) -> list:
        found, word = [], Word()
        while self.model.check(self.lib.moshi_next_word(self.handle, word)):
            found.append([word.text.decode(), word.start, word.end])
        return found

    def free(self):
        self.lib.moshi_session_free(self.handle)


def run(job: dict) -> dict:
    begin = time.perf_counter(), time.process_time()
    models = [Model(library(job["library"]), folder) for folder in job["models"]]
    model = models[0]
    lib, size = model.lib, model.info.frame_size
    session = Session(model, **job.get("options", {}))
    sound = np.load(job["sound"]).reshape(-1, size) if job.get("sound") else np.zeros((1, size), np.float32)
    at, frames, words, codes, decoded = 0, [], [], [], []
    loaded = time.perf_counter(), time.process_time()

    def next_pcm() -> np.ndarray:
        nonlocal at
        at += 1
        return sound[(at - 1) % len(sound)]

    for name, *arguments in job["actions"]:
        if name == "step":
            for _ in range(arguments[0]):
                frames.append(session.step(next_pcm()))
        elif name == "end":
            frames.append(session.step(next_pcm(), ENDED))
        elif name == "words":
            words += session.words()
        elif name == "flush":
            model.check(lib.moshi_flush(session.handle))
            words += session.words()
        elif name == "sampling":
            model.check(lib.moshi_set_sampling(session.handle, model.options(**arguments[0])))
        elif name == "reset":
            model.check(lib.moshi_reset(session.handle, model.options(**arguments[0])))
        elif name in ("save", "restore"):
            model.check(getattr(lib, f"moshi_{name}")(session.handle, arguments[0].encode()))
        elif name == "codec":
            for _ in range(arguments[0]):
                found = np.zeros(model.info.codebooks, np.int32)
                pcm, back = next_pcm(), np.zeros(size, np.float32)
                model.check(lib.moshi_encode(session.handle, pcm.ctypes.data_as(_floats), found.ctypes.data_as(_ints)))
                model.check(lib.moshi_decode(session.handle, found.ctypes.data_as(_ints), back.ctypes.data_as(_floats)))
                codes.append(found)
                decoded.append(back)
        elif name == "verify":
            model.check(lib.moshi_verify(job["models"][0].encode()))
        else:
            raise ValueError(name)
    end = time.perf_counter(), time.process_time()
    if job.get("out"):
        np.savez(
            job["out"],
            pcm=np.stack(
                [f["pcm"] if len(f["pcm"]) else np.zeros(size, np.float32) for f in frames] or [np.zeros(size)]
            ),
            samples=[len(f["pcm"]) for f in frames],
            tokens=np.array([f["tokens"] for f in frames], np.int32),
            pauses=np.array([f["pauses"] for f in frames], np.float32),
            codes=np.array(codes, np.int32),
            decoded=np.array(decoded, np.float32),
        )
    session.free()
    for model in models:
        model.free()
    return {
        "texts": [f["text"] for f in frames],
        "index": [f["index"] for f in frames],
        "time": [f["time"] for f in frames],
        "complete": [f["complete"] for f in frames],
        "words": words,
        "start_seconds": loaded[0] - begin[0],
        "start_cpu": loaded[1] - begin[1],
        "cpu": end[1] - loaded[1],
        "python_in_libraries": any("libpython" in line for line in open("/proc/self/maps"))
        if sys.platform == "linux"
        else None,
    }


def serve(path: str, folder: str) -> None:
    """Try what each line names, a folder to load or a conversation to take up, and answer with the reason why not, or with ""."""
    lib = library(path)
    good = Model(lib, folder)
    session = Session(good)
    silence = np.zeros(good.info.frame_size, np.float32)
    for line in sys.stdin:
        ask = json.loads(line)
        reason, verified = "", ""
        try:
            if "restore" in ask:
                good.check(lib.moshi_restore(session.handle, ask["restore"].encode()))
                session.step(silence)
            else:
                if lib.moshi_verify(ask["load"].encode()) < 0:
                    verified = lib.moshi_error().decode()
                model = Model(lib, ask["load"])
                other = Session(model)
                if model.info.codebooks:
                    other.step(np.zeros(model.info.frame_size, np.float32))
                other.words()
                other.free()
                model.free()
        except MoshiError as e:
            reason = str(e)
        # Whatever was refused, the good conversation goes on.
        session.step(silence)
        print(json.dumps({"reason": reason, "verified": verified}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(*sys.argv[1:])
        sys.exit()
    try:
        print(json.dumps(run(json.load(sys.stdin))))
    except MoshiError as e:
        print(json.dumps({"error": str(e)}))
