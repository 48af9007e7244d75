"""Checks of one codec golden case (see its README). Streaming uses the exact window: it has to give what offline gives."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
from golden_lm import close, read

from moshi_mlx.checkpoint import load_mimi_file
from moshi_mlx.checkpoint.weights_writer import WeightsWriter
from moshi_mlx.config import MimiConfig
from moshi_mlx.config.presets import MIMI_V0_1
from moshi_mlx.engine.state import put_rows
from moshi_mlx.models.mimi_model import MimiModel

GOLDENS = Path(__file__).parent / "goldens" / "mimi"
SEEDED_WEIGHTS = "seeded_weights.py"
LATENT_TOL = 1e-3
AUDIO_TOL = 1e-4
MIN_CODES_EQUAL = 0.995


def codes_equal(name: str, ours, expected) -> None:
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape, f"{name}: shape {ours.shape}, expected {expected.shape}"
    rate = (ours == expected).mean()
    assert rate >= MIN_CODES_EQUAL, f"{name}: {rate:.2%} of the codes equal"


def check(folder: Path) -> None:
    mimi = load(folder / "config.json", folder / "model.safetensors")
    check_layouts(folder, mimi)
    data = read(folder / "io.safetensors")
    names = sorted({k.split(".")[1] for k in data if k.startswith("offline.")})
    assert names, f"{folder}: io.safetensors holds no offline case"
    for name in names:
        check_offline(mimi, data, name)
        check_streaming(mimi, data, name)
    check_uneven(mimi, data)
    check_batches(mimi, data)


def load(config: Path, weights: Path) -> MimiModel:
    mimi = MimiModel(MimiConfig.from_dict(json.loads(config.read_text())))
    load_mimi_file(mimi, weights)
    return mimi


def check_layouts(folder: Path, mimi: MimiModel) -> None:
    """The transformers file of the same weights loads to the same values."""
    other = folder / "hf" / "model.safetensors"
    if not other.exists():
        return
    from mlx.utils import tree_flatten

    same = dict(tree_flatten(load(folder / "config.json", other).parameters()))
    for name, value in tree_flatten(mimi.parameters()):
        assert mx.array_equal(value, same[name]).item(), f"{name} differs between the Kyutai and the transformers file"


def check_offline(mimi: MimiModel, data: dict, name: str) -> None:
    pcm = mx.array(data[f"offline.{name}.pcm"])
    codes = mx.array(data[f"offline.{name}.codes"])
    state = mimi.init_encoder()
    x, _ = mimi.encoder(pcm.swapaxes(1, 2), state["convs"])
    close(f"{name} seanet", x.swapaxes(1, 2), data[f"offline.{name}.enc_seanet"], LATENT_TOL)
    x, _ = mimi.encoder_transformer.transformer(x, state["transformer"])
    close(f"{name} transformer", x.swapaxes(1, 2), data[f"offline.{name}.enc_transformer"], LATENT_TOL)
    x, _ = mimi.latents(pcm, mimi.init_encoder())
    close(f"{name} latent", x.swapaxes(1, 2), data[f"offline.{name}.latent"], LATENT_TOL)
    codes_equal(f"{name} codes", mimi.encode(pcm), codes)
    close(
        f"{name} quantized", mimi.quantizer.decode(codes).swapaxes(1, 2), data[f"offline.{name}.quantized"], LATENT_TOL
    )
    close(f"{name} audio", mimi.decode(codes), data[f"offline.{name}.pcm_out"], AUDIO_TOL)
    for key in data:
        if key.startswith(f"offline.{name}.pcm_out_first"):
            first = int(key.removeprefix(f"offline.{name}.pcm_out_first"))
            close(key, mimi.decode(codes[:, :first]), data[key], AUDIO_TOL)
            codes_equal(key, mimi.encode(pcm, first), codes[:, :first])


def check_streaming(mimi: MimiModel, data: dict, name: str) -> None:
    """One frame per call, and the chunks of the golden: codes, latents and audio as offline."""
    pcm, codes = mx.array(data[f"offline.{name}.pcm"]), mx.array(data[f"offline.{name}.codes"])
    chunkings = [[1] * codes.shape[2]]
    if f"streamN.{name}.chunks" in data:
        chunkings.append(data[f"streamN.{name}.chunks"].tolist())
    for chunks in chunkings:
        encoder, decoder = mimi.init_encoder(), mimi.init_decoder()
        got_codes, got_pcm, at = [], [], 0
        for n in chunks:
            c, encoder = mimi.encode_chunk(pcm[:, :, at * mimi.frame_size : (at + n) * mimi.frame_size], encoder)
            p, decoder = mimi.decode_chunk(codes[:, :, at : at + n], decoder)
            mx.eval(c, encoder, p, decoder)
            got_codes.append(c)
            got_pcm.append(p)
            at += n
        assert at == codes.shape[2]
        codes_equal(f"{name} streamed codes {chunks[:4]}", mx.concatenate(got_codes, axis=2), codes)
        close(
            f"{name} streamed audio {chunks[:4]}",
            mx.concatenate(got_pcm, axis=2),
            data[f"offline.{name}.pcm_out"],
            AUDIO_TOL,
        )


def check_uneven(mimi: MimiModel, data: dict) -> None:
    for n in data.get("uneven.lengths", np.zeros(0)).tolist():
        pcm = mx.array(data["uneven.pcm"])[..., :n].reshape(1, 1, n)
        codes_equal(f"uneven {n}", mimi.encode(pcm), data[f"uneven.{n}.codes"])
        padded = mx.pad(pcm, [(0, 0), (0, 0), (0, -n % mimi.frame_size)])
        latent, _ = mimi.latents(padded, mimi.init_encoder())
        close(f"uneven {n} latent", latent.swapaxes(1, 2), data[f"uneven.{n}.latent"], LATENT_TOL)


def check_batches(mimi: MimiModel, data: dict) -> None:
    """Rows that reset and pause give what a fresh stream of their own frames gives."""
    if "batch_reset.codes" not in data:
        return
    rows = [mx.array(data["offline.speech.pcm"]), mx.array(data["offline.noise.pcm"])]
    steps = data["batch_reset.codes"].shape[2]
    reset_at = int(data["batch_reset.reset_at"].reshape(-1)[0])
    resets = [[False, t == reset_at] for t in range(steps)]
    everyone = [[True, True]] * steps
    for kind, masks, reset in (
        ("batch_reset", everyone, resets),
        ("batch_mask", data["batch_mask.exec_mask"].astype(bool).tolist(), None),
    ):
        codes, pcm = _run_rows(mimi, rows, mx.array(data[f"{kind}.decode_codes"]), masks, reset)
        for row, frame_codes in enumerate(codes):
            expected = _fresh_codes(mimi, rows[row], masks, reset, row)
            codes_equal(f"{kind} row {row}", mx.stack(frame_codes, axis=1), expected)
        for row, frames in enumerate(pcm):
            expected = _fresh_audio(mimi, mx.array(data[f"{kind}.decode_codes"])[row : row + 1], masks, reset, row)
            close(f"{kind} audio row {row}", mx.concatenate(frames), expected, AUDIO_TOL)


def _run_rows(mimi: MimiModel, rows, decode_codes, masks, resets):
    encoder, decoder = mimi.init_encoder(2, lockstep=False), mimi.init_decoder(2, lockstep=False)
    at, codes, pcm, size = [0, 0], [[], []], [[], []], mimi.frame_size
    for t, mask in enumerate(masks):
        if resets and any(resets[t]):
            at_rows = [mx.array([row], mx.int32) for row in (0, 1) if resets[t][row]]
            blank = mimi.init_encoder(len(at_rows), lockstep=False), mimi.init_decoder(len(at_rows), lockstep=False)
            encoder, decoder = (put_rows(s, b, at_rows) for s, b in zip((encoder, decoder), blank, strict=True))
        pick = partial(_next, at=at, mask=mask)
        heard = mx.concatenate(
            [pick(row, lambda r, i: rows[r][:, :, i * size : (i + 1) * size], 0.5, (1, 1, size)) for row in (0, 1)]
        )
        given = mx.concatenate(
            [
                pick(row, lambda r, i: decode_codes[r : r + 1, :, i : i + 1], 0, (1, decode_codes.shape[1], 1))
                for row in (0, 1)
            ]
        )
        execute = mx.array(mask)
        c, encoder = mimi.encode_chunk(heard, encoder, execute=execute)
        p, decoder = mimi.decode_chunk(given.astype(mx.int32), decoder, execute=execute)
        mx.eval(c, encoder, p, decoder)
        for row in (0, 1):
            if mask[row]:
                codes[row].append(c[row, :, 0])
                pcm[row].append(p[row, 0])
                at[row] += 1
    return codes, pcm


def _next(row: int, source, filler: float, shape, at, mask) -> mx.array:
    return source(row, at[row]) if mask[row] else mx.full(shape, filler)


def _pieces(masks, resets, row: int) -> list[tuple[int, int]]:
    """(first, last) executed frame of every life of a row: a reset begins a new one."""
    pieces, start, at = [], 0, 0
    for t, mask in enumerate(masks):
        if resets and resets[t][row]:
            pieces.append((start, at))
            start = at
        at += mask[row]
    return [*pieces, (start, at)]


def _fresh_codes(mimi, pcm, masks, resets, row) -> mx.array:
    parts = [
        mimi.encode(pcm[:, :, a * mimi.frame_size : b * mimi.frame_size])[0]
        for a, b in _pieces(masks, resets, row)
        if b > a
    ]
    return mx.concatenate(parts, axis=1)


def _fresh_audio(mimi, codes, masks, resets, row) -> mx.array:
    parts = [mimi.decode(codes[:, :, a:b].astype(mx.int32))[0, 0] for a, b in _pieces(masks, resets, row) if b > a]
    return mx.concatenate(parts)


def seeded_weights(folder: Path, seed: int, path: Path, digest: str | None = None) -> Path:
    """The full-size codec of a golden: 385 MB, made from its seed by the script beside the cases."""
    script = folder / SEEDED_WEIGHTS
    if not script.exists():
        script = GOLDENS / SEEDED_WEIGHTS
    spec = importlib.util.spec_from_file_location("seeded_weights", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights = module.make_weights(seed)
    assert digest is None or module.digest(weights) == digest, f"{script} makes other weights than those of the case"
    with WeightsWriter(path, [(n, "F32", tuple(v.shape)) for n, v in weights.items()]) as writer:
        for name, value in weights.items():
            writer.write(name, np.ascontiguousarray(value, np.float32).tobytes())
        writer.commit()
    return path


def check_seeded(folder: Path, scratch: Path) -> None:
    """The published configuration: offline codes, latents and audio, past the 250-step window."""
    notes = json.loads((folder / "notes.json").read_text())
    weights = seeded_weights(folder.parent, notes["seed"], scratch / "mimi.safetensors", notes.get("weights_sha256"))
    mimi = MimiModel(MimiConfig.from_dict(MIMI_V0_1))
    load_mimi_file(mimi, weights)
    data = read(folder / "io.safetensors")
    short = mx.array(data["short.pcm"]).reshape(1, 1, -1)
    long = mx.array(data["long.pcm"].astype(np.float32) / 32768).reshape(1, 1, -1)
    for name, pcm in (("short", short), ("long", long)):
        codes_equal(f"{name} codes", mimi.encode(pcm), data[f"{name}.codes"])
        latent, _ = mimi.latents(pcm, mimi.init_encoder())
        close(f"{name} latent", latent.swapaxes(1, 2), data[f"{name}.latent"], LATENT_TOL)
    for k in (8, 16):
        codes_equal(f"{k} codebooks", mimi.encode(short, k), data["short.codes"][:, :k])
        codes_equal(f"{k} codebooks, rustymimi", mimi.encode(short, k), data[f"short.rust{k}.codes"])
        audio(f"first {k}", mimi.decode(mx.array(data["short.codes"])[:, :k]), data[f"short.pcm_out_first{k}"])
    codes = mx.array(data["short.codes"])
    audio("short", mimi.decode(codes), data["short.pcm_out"])
    audio("short, rustymimi", mimi.decode(codes), data["short.rust32.pcm_out"])
    audio("long", mimi.decode(mx.array(data["long.codes"]))[..., -25 * mimi.frame_size :], data["long.pcm_out"])
    streamed, encoder = [], mimi.init_encoder()
    for t in range(codes.shape[2]):
        c, encoder = mimi.encode_chunk(short[:, :, t * mimi.frame_size : (t + 1) * mimi.frame_size], encoder)
        mx.eval(c, encoder)
        streamed.append(c)
    codes_equal("short, one frame per call", mx.concatenate(streamed, axis=2), data["short.codes"])


def audio(name: str, ours, expected) -> None:
    ours, expected = np.asarray(ours).reshape(-1), np.asarray(expected).reshape(-1)
    close(name, ours, expected, AUDIO_TOL)
    snr = 10 * np.log10((expected**2).sum() / max(((ours - expected) ** 2).sum(), 1e-30))
    assert snr >= 90, f"{name}: {snr:.0f} dB"
