"""Sound on the wire: Ogg/Opus from clients that get pages right, wrong and in pieces; ours by the RFC; bare PCM."""

from __future__ import annotations

import random
import struct
import time

import numpy as np
import pytest
import soundfile
from web_server import tone

pytest.importorskip("sphn")
import sphn

from moshi_mlx.server import ogg
from moshi_mlx.server.opus import OpusReader, OpusWriter, Pcm


def stream(frames: int = 40, size: int = 1920) -> list[bytes]:
    """What a client of sphn sends: `frames` of 80 ms in packets of `size` samples."""
    writer, pcm = sphn.OpusStreamWriter(24000), tone(frames)
    return [writer.append_pcm(pcm[i : i + size]) for i in range(0, len(pcm), size)]


def decoded(pages: list[bytes]) -> np.ndarray:
    """By sphn itself, which has to find every byte in its place."""
    reader = sphn.OpusStreamReader(24000)
    return np.concatenate([reader.append_bytes(p) for p in pages])


def by_hand(packet: bytes, number: int) -> bytes:
    """A page of fujielab-moshi-client: one lacing value, whatever the packet's length; the checksum covers all of it."""
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, 2 if number == 0 else 0, 0, 7, number, 0, 1)
    page = head + bytes([min(len(packet), 255)]) + packet
    return page[:22] + struct.pack("<I", ogg.checksum(page)) + page[26:]


@pytest.mark.parametrize("size", [480, 960, 1920, 2880])
def test_packets_of_any_length(size):
    pages = stream(36, size)
    np.testing.assert_array_equal(np.concatenate([OpusReader().decode(b"".join(pages))]), decoded(pages))


@pytest.mark.parametrize("seed", range(5))
def test_message_boundaries_carry_no_meaning(seed):
    """Pages split anywhere, glued to others, empty payloads."""
    pages = stream()
    data, chance, reader, at, parts = b"".join(pages), random.Random(seed), OpusReader(), 0, []
    while at < len(data):
        count = chance.choice([0, 1, 27, 100, 700, 3000])
        parts.append(reader.decode(data[at : at + count]))
        at += count
    np.testing.assert_array_equal(np.concatenate(parts), decoded(pages))
    assert (reader.skipped, reader.lost) == (0, 0)


def test_garbage_between_pages_costs_nothing_of_them():
    pages, chance, reader = stream(), random.Random(0), OpusReader()
    parts = []
    for page in pages:
        # Also what looks like the beginning of a page, of one without an end, and of one that is there.
        for rubbish in (chance.randbytes(60), b"OggS", b"OggS\0\0" + bytes(20) + b"\xff" * 8, page[:30]):
            parts.append(reader.decode(rubbish))
        parts.append(reader.decode(page))
    np.testing.assert_array_equal(np.concatenate(parts), decoded(pages))
    assert reader.skipped >= 60 * len(pages)


def test_a_damaged_page_is_lost_alone():
    pages, reader = stream(), OpusReader()
    damaged = pages[10][:-5] + bytes([pages[10][-5] ^ 1]) + pages[10][-4:]
    sent = [*pages[:10], damaged, *pages[11:]]
    out = np.concatenate([reader.decode(p) for p in sent])
    # Half a frame: sphn makes packets of 40 ms.
    assert len(out) == 39.5 * 1920
    np.testing.assert_array_equal(out[: 10 * 1920], decoded(pages)[: 10 * 1920])
    assert 0 < reader.skipped < len(damaged)


def test_a_page_that_is_no_opus_is_lost_alone():
    reader, pages = OpusReader(), stream()
    writer = ogg.PageWriter(1)
    out = [reader.decode(p) for p in pages[:5]]
    # Code 3 with a count of frames that the packet cannot hold.
    out.append(reader.decode(writer.page(b"\xff\x3f", 0)))
    out += [reader.decode(p) for p in pages[5:]]
    assert reader.lost == 1
    assert len(np.concatenate(out)) == 40 * 1920


@pytest.mark.parametrize("piece", [None, 97])
def test_hand_written_pages_longer_than_their_table(piece, tmp_path):
    """A published client's: plain sphn dies of them within seconds."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 24000)
    soundfile.write(tmp_path / "loud.opus", noise, 24000, format="OGG", subtype="OPUS", compression_level=0.0)
    packets = ogg.PacketReader().feed((tmp_path / "loud.opus").read_bytes())
    writer = ogg.PageWriter(1)
    pages = [writer.page(p, 0) for p in packets]
    assert sum(len(p) > 255 for p in packets) > 10
    sent = [by_hand(p, i) for i, p in enumerate(packets)]
    with pytest.raises(ValueError, match="capture pattern"):
        decoded(sent)
    if piece is not None:
        data = b"".join(sent)
        sent = [data[i : i + piece] for i in range(0, len(data), piece)]
    reader = OpusReader()
    np.testing.assert_array_equal(np.concatenate([reader.decode(p) for p in sent]), decoded(pages))


def test_packets_over_several_pages_and_several_packets_a_page():
    first, second, third = b"a" * 600, b"b" * 20, b"c" * 300

    def page(flags: int, number: int, lacing: list[int], body: bytes) -> bytes:
        raw = ogg.HEADER.pack(b"OggS", 0, flags, 0, 3, number, 0, len(lacing)) + bytes(lacing) + body
        return raw[:22] + struct.pack("<I", ogg.checksum(raw)) + raw[26:]

    pages = [
        page(2, 0, [255, 255], first[:510]),
        page(1, 1, [90, 20, 255], first[510:] + second + third[:255]),
        page(1, 2, [45], third[255:]),
    ]
    assert ogg.PacketReader().feed(b"".join(pages)) == [first, second, third]
    # The end of a packet whose beginning was lost is not taken for one.
    assert ogg.PacketReader().feed(b"".join(pages[1:])) == [second, third]


def test_a_client_that_begins_a_new_stream():
    one, two = stream(10), stream(10)
    reader = OpusReader()
    out = np.concatenate([reader.decode(p) for p in one + two])
    np.testing.assert_array_equal(out, np.concatenate([decoded(one), decoded(two)]))


def test_sound_before_the_talk_is_not_decoded():
    pages, reader = stream(), OpusReader()
    for page in pages[:20]:
        reader.skip(page)
    out = np.concatenate([reader.decode(p) for p in pages[20:]])
    assert len(out) == 20 * 1920
    # The decoder finds its way within two packets.
    np.testing.assert_allclose(out[2 * 1920 :], decoded(pages)[22 * 1920 :], atol=0.02)


@pytest.mark.parametrize(
    "rubbish", [b"OggS" * 260_000, (b"OggS\0\0" + bytes(20) + b"\xff" * 3) * 36_000, bytes(1 << 20)]
)
def test_rubbish_keeps_nobody_busy(rubbish):
    """A message of the largest size; the next page is found all the same."""
    reader, pages = OpusReader(), stream(5)
    begun = time.process_time()
    assert len(reader.decode(rubbish)) == 0
    assert time.process_time() - begun < 1.0
    assert len(np.concatenate([reader.decode(p) for p in [*stream(5), *pages]])) >= 5 * 1920


def test_our_stream_is_by_the_rfc(tmp_path):
    """Granules at 48 kHz, so that any player knows how long it is."""
    writer, pcm = OpusWriter(), tone(25)
    data = b"".join(writer.encode(frame) for frame in pcm.reshape(-1, 1920))
    (tmp_path / "ours.opus").write_bytes(data)
    info = soundfile.info(tmp_path / "ours.opus")
    assert (info.channels, info.format) == (1, "OGG")
    # Two seconds less the pre-skip of 80 ms.
    assert info.frames / info.samplerate == pytest.approx(2.0 - 0.08)
    np.testing.assert_array_equal(decoded([data]), decoded(stream(25)))


def test_bare_samples_in_any_pieces():
    pcm = tone(3)
    for kind, width in (("pcm_s16le", 2), ("pcm_f32le", 4)):
        coder = Pcm(kind)
        data = coder.encode(pcm)
        assert len(data) == width * len(pcm)
        parts = [coder.decode(data[i : i + 333]) for i in range(0, len(data), 333)]
        np.testing.assert_allclose(np.concatenate(parts), pcm, atol=1e-4 if width == 2 else 0)
    assert Pcm("pcm_s16le").encode(np.array([2.0, -2.0], np.float32)) == struct.pack("<2h", 32767, -32767)
