"""What a file with sound is, by its first bytes. Nothing is guessed: samples without a header look like many a format."""

from __future__ import annotations

import struct

# Enough for some frames of MPEG audio.
HEAD_BYTES = 16384
# By their beginnings; `None` for those that are told apart further on.
_MAGIC = {
    b"RIFF": "wav", b"RIFX": "wav", b"RF64": "wav", b"riff": "w64", b"FORM": "aiff", b".snd": "au", b"fLaC": "flac",
    b"OggS": "ogg", b"caff": "caf", b"\x1a\x45\xdf\xa3": "webm", b"#!AM": "amr", b"wvpk": "wavpack", b"MAC ": "ape",
    b"\x30\x26\xb2\x75": "wma", b"Crea": "voc", b"NIST": "nist",
}  # fmt: skip
# What libsndfile reads. The rest is for a converter.
LIBSNDFILE = ("wav", "w64", "aiff", "au", "flac", "ogg", "mp3", "voc", "nist", "caf")
# What can be read only by going back and forth: their index may stand at the end.
SEEKING = ("mp4", "caf", "aiff", "w64")
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# kbit/s by (MPEG 1?, layer); the index 0 is "free", 15 is none.
_BITRATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_FRAMES_TO_BELIEVE = 3


def kind_of(head: bytes, whole: bool = False) -> str | None:
    """The kind of sound that begins with `head`, None for what is none. `whole`: nothing follows `head`."""
    found = _MAGIC.get(head[:4])
    if found == "wav" and head[8:12] not in (b"WAVE", b""):
        return None
    if found == "aiff" and head[8:12] not in (b"AIFF", b"AIFC"):
        return None
    if found is not None:
        return found
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") or head[4:8] == b"pnot":
        return "mp4"
    if head[:3] == b"ID3":
        return _after_tag(head)
    start = len(head) - len(head.lstrip(b"\0"))
    for kind, length_of in (("mp3", mp3_frame), ("aac", adts_frame)):
        if _chain(head, start, length_of, whole):
            return kind
    return None


def tag_bytes(head: bytes) -> int:
    """Size of an ID3v2 tag, from its 10 bytes of header on."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _after_tag(head: bytes) -> str:
    """A tag may be larger than what was read; mp3 is what most of them are on."""
    start = tag_bytes(head) if len(head) >= 10 else len(head)
    if head[start : start + 4] == b"fLaC":
        return "flac"
    return "aac" if adts_frame(head[start : start + 7]) is not None else "mp3"


def _chain(head: bytes, at: int, length_of, whole: bool) -> bool:
    """Whether frames follow each other, each where the one before says: a rule that samples do not keep."""
    count = 0
    while count < _FRAMES_TO_BELIEVE:
        length = length_of(head[at : at + 7])
        if length is None:
            # A short recording, or what was cut.
            return whole and count >= 1 and at >= len(head)
        at, count = at + length, count + 1
    return True


def mp3_frame(head: bytes) -> int | None:
    """Bytes of the MPEG audio frame with this header, None if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate_index, padding = head[2] >> 2 & 3, head[2] >> 1 & 1
    bitrate_index = head[2] >> 4
    if version == 1 or layer == 4 or rate_index == 3 or not 1 <= bitrate_index <= 14 or head[3] & 3 == 2:
        return None
    first = version == 3
    bitrate = 1000 * _BITRATES[first, layer if first else min(layer, 2)][bitrate_index - 1]
    rate = _MP3_RATES[version][rate_index]
    if layer == 1:
        return (12 * bitrate // rate + padding) * 4
    return mp3_samples(head) // 8 * bitrate // rate + padding


def mp3_samples(head: bytes) -> int:
    """Samples of an MPEG audio frame."""
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    return 384 if layer == 1 else 1152 if layer == 2 or version == 3 else 576


def mp3_rate(head: bytes) -> int:
    return _MP3_RATES[head[1] >> 3 & 3][head[2] >> 2 & 3]


def adts_frame(head: bytes) -> int | None:
    """Bytes of the AAC frame with this header (ADTS), None if it is none."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return None
    length = struct.unpack(">I", head[3:7])[0] >> 13 & 0x1FFF
    return length if length >= 7 else None
