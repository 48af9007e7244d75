"""States and saved conversations with one thing changed: `python fuzz_states.py CHECKPOINT FOLDER EXAMPLES`.

A process of its own, since what slips through might end it. Whatever is changed, the state is refused with a sentence, and the session
then goes on as if nothing had been tried, or it can be stepped.
"""

from __future__ import annotations

import json
import struct
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map_with_path

from moshi_mlx import checkpoint
from moshi_mlx.errors import MoshiError
from moshi_mlx.session import Session
from moshi_mlx.session.conversation_file import load_conversation, save_conversation

model, folder, examples = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
relaxed = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
loaded = checkpoint.load(model)
SESSIONS = [Session(loaded, seed=1, compile=False), Session(loaded, seed=[1, 2], batch=2, kv_bits=8, compile=False)]
DTYPES = [mx.int32, mx.uint32, mx.int64, mx.uint8, mx.bool_, mx.float32, mx.float16, mx.bfloat16]
WILD = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([-3, -2, -1, 0, 1, 255, 256, 257, 2**30, 2**30 + 1]),
    st.floats(width=32),
)
pcm = 0.1 * np.random.default_rng(0).standard_normal((2, 1920)).astype(np.float32)
tried = {"refused": 0, "stepped": 0}


def step(session: Session) -> list:
    return session.step(pcm[: session.batch])


START = []
for session in SESSIONS:
    for _ in range(4):
        step(session)
    START.append((session.state, [f.codes.tolist() for f in step(session)]))


def check(which: int, change) -> None:
    """`change` is refused and harms nothing, or leaves something that can be stepped."""
    session, (start, expected) = SESSIONS[which], START[which]
    session.state = start
    sentence = None
    try:
        change(session)
    except MoshiError as e:
        sentence = str(e)
    if sentence is not None:
        tried["refused"] += 1
        assert 0 < len(sentence) < 2000
        assert [f.codes.tolist() for f in step(session)] == expected
        return
    tried["stepped"] += 1
    for _ in range(4):
        for frame in step(session):
            assert ((frame.codes >= -2) & (frame.codes < loaded.lm.cfg.card)).all()


@st.composite
def changed_arrays(draw, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """The arrays of a state with one of them changed: a number, its shape or its type; or missing, or one more."""
    name = draw(st.sampled_from(sorted(arrays)))
    array, out = arrays[name], dict(arrays)
    kind = draw(st.sampled_from(["number", "number", "all", "shape", "type", "gone", "more"]))
    if kind == "gone":
        del out[name]
    elif kind == "more":
        out[draw(st.sampled_from([f"{name}.0", f"{name}x", "lm.trunk.layers.99999999", "text.0", "."]))] = mx.array([1])
    elif kind == "type":
        out[name] = array.astype(draw(st.sampled_from(DTYPES)))
    elif kind == "shape":
        axis = draw(st.integers(0, max(array.ndim - 1, 0)))
        size = draw(st.integers(0, 2 * max(array.shape[axis] if array.ndim else 1, 1)))
        out[name] = mx.zeros([*array.shape[:axis], size, *array.shape[axis + 1 :]], array.dtype)
    else:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wild = np.array(draw(WILD)).astype(np.float32 if mx.issubdtype(array.dtype, mx.floating) else np.int64)
        value = mx.array(wild).astype(array.dtype)
        if kind == "all" or not array.size:
            out[name] = mx.full(array.shape, value)
        else:
            flat = array.reshape(-1)
            flat[draw(st.integers(0, array.size - 1))] = value
            out[name] = flat.reshape(array.shape)
    return out


@relaxed
@given(st.data(), st.sampled_from([0, 1]))
def states(data, which: int) -> None:
    arrays = data.draw(changed_arrays(dict(tree_flatten(START[which][0]))))

    def change(session: Session) -> None:
        # A missing array is a missing part, one too many an unknown one.
        state = tree_map_with_path(lambda name, _: arrays.get(name), START[which][0])
        for name in set(arrays) - {n for n, _ in tree_flatten(START[which][0])}:
            state[name] = arrays[name]
        session.state = state

    check(which, change)


@relaxed
@given(
    st.data(),
    st.sampled_from([0, 1]),
    st.sampled_from([None, "", "moshi_mlx conversation 2", "sha256:0"]),
    st.booleans(),
)
def files(data, which: int, other: str | None, is_format: bool) -> None:
    arrays = data.draw(changed_arrays(dict(tree_flatten(START[which][0]))))
    metadata = {"format": "moshi_mlx conversation 1", "model": loaded.fingerprint}
    if other is not None:
        metadata["format" if is_format else "model"] = other
    path = str(folder / "changed.safetensors")
    mx.save_safetensors(path, arrays, metadata)
    check(which, lambda session: load_conversation(session, path))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
OBJECTS = st.dictionaries(st.text(max_size=8) | st.sampled_from(["format", "model"]), SCALARS, max_size=4)
JSON = SCALARS | OBJECTS | st.lists(SCALARS, max_size=4) | st.lists(OBJECTS, max_size=2)


@relaxed
@given(st.data(), st.sampled_from([0, 1]))
def headers(data, which: int) -> None:
    """The header of a file says something else, or the file's bytes are others."""
    raw = (folder / f"{which}.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    kind = data.draw(st.sampled_from(["entry", "field", "bytes", "cut", "metadata"]))
    if kind == "bytes":
        changed = bytearray(raw)
        for _ in range(data.draw(st.integers(1, 8))):
            changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        out = bytes(changed)
    elif kind == "cut":
        out = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        if kind == "metadata":
            header["__metadata__"] = data.draw(JSON)
        else:
            name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
            if kind == "entry":
                header[name] = data.draw(JSON)
            else:
                header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(
                    JSON | st.lists(st.integers(-1, 2**40), max_size=5) | st.sampled_from(["F64", "F8_E4M3", "I32"])
                )
        text = json.dumps(header).encode()
        out = struct.pack("<Q", len(text)) + text + body
    path = folder / "changed.safetensors"
    path.write_bytes(out)
    check(which, lambda session: load_conversation(session, path))


for i, session in enumerate(SESSIONS):
    save_conversation(session, folder / f"{i}.safetensors")
for test in (states, files, headers):
    with warnings.catch_warnings():
        # A file that does not say its model.
        warnings.simplefilter("ignore", UserWarning)
        test()
print(json.dumps(tried))
