"""Ogg pages (RFC 3533), read from whatever arrives in whatever pieces, and written.

The reader never fails: what is not a whole page with the right checksum is skipped up to the next one. Clients that write
their pages by hand get some of them wrong, and a talk must outlive that.
"""

from __future__ import annotations

import struct
import zlib

MARK = b"OggS"
# Mark, version, flags, granule position, serial number, page number, checksum, number of segments.
HEADER = struct.Struct("<4sBBqIIIB")
CONTINUED, FIRST, LAST = 1, 2, 4
LONGEST_PAGE = HEADER.size + 255 + 255 * 255
LONGEST_PACKET = 1 << 16
_CHECKSUM_AT = 22
_MIRRORED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def checksum(page: bytes) -> int:
    """The CRC of a page whose checksum field is zero: polynomial 0x04c11db7, most significant bit first, from 0.

    zlib's runs over the bits the other way round, and begins and ends inverted.
    """
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def is_whole(page: bytes) -> bool:
    (stated,) = struct.unpack_from("<I", page, _CHECKSUM_AT)
    return checksum(page[:_CHECKSUM_AT] + bytes(4) + page[_CHECKSUM_AT + 4 :]) == stated


class PacketReader:
    """Bytes in, whole packets out. `skipped` counts the bytes that belonged to no page."""

    def __init__(self) -> None:
        self.skipped = 0
        self._bytes = bytearray()
        self._unfinished: bytearray | None = None
        # Bytes whose checksum may still be taken: rubbish that looks like pages must not keep the processor busy.
        self._effort = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Packets completed by `data`."""
        self._bytes += data
        self._effort = 4 * LONGEST_PAGE + 8 * len(data)
        packets: list[bytes] = []
        while (length := self._find_page()) is not None:
            packets += self._packets(bytes(self._bytes[:length]))
            del self._bytes[:length]
        return packets

    def _find_page(self) -> int | None:
        """Skip to a page that is all there; its length, or None where there is none yet."""
        while True:
            at = self._bytes.find(MARK)
            self._skip(at if at >= 0 else max(0, len(self._bytes) - len(MARK) + 1))
            if at < 0:
                return None
            stated = self._stated_length(0)
            if stated is not None and self._whole(0, stated):
                return stated
            after = self._bytes.find(MARK, len(MARK))
            if stated is not None and stated <= len(self._bytes):
                # Damaged, or longer than its table says, as hand-written pages are: then the checksum covers what follows.
                end = after if after >= 0 else len(self._bytes)
                if end > stated and self._whole(0, end):
                    return end
            else:
                # Still on its way, unless a whole page follows already.
                while after >= 0 and self._effort >= 0 and not self._whole(after, self._stated_length(after)):
                    after = self._bytes.find(MARK, after + 1)
            if self._effort < 0 or len(self._bytes) > LONGEST_PAGE:
                after = len(self._bytes) if after < 0 or self._effort < 0 else after
            if after < 0:
                return None
            self._skip(after)

    def _stated_length(self, at: int) -> int | None:
        """Length of the page at `at` by its own table, None while the table is not there."""
        table = at + HEADER.size
        if len(self._bytes) < table or len(self._bytes) < table + self._bytes[table - 1]:
            return None
        count = self._bytes[table - 1]
        return HEADER.size + count + sum(self._bytes[table : table + count])

    def _whole(self, at: int, length: int | None) -> bool:
        if length is None or len(self._bytes) < at + length or self._effort < 0:
            return False
        self._effort -= length
        return is_whole(bytes(self._bytes[at : at + length]))

    def _skip(self, count: int) -> None:
        if count:
            self.skipped += count
            self._unfinished = None
            del self._bytes[:count]

    def _packets(self, page: bytes) -> list[bytes]:
        """Packets that end in `page`; what is longer than the table belongs to its last one."""
        flags, count = page[5], page[HEADER.size - 1]
        lacing, body = page[HEADER.size : HEADER.size + count], page[HEADER.size + count :]
        packet = self._unfinished if flags & CONTINUED else bytearray()
        longer = len(body) > sum(lacing)
        packets, at = [], 0
        for i, size in enumerate(lacing):
            last = longer and i == count - 1
            if packet is not None:
                packet += body[at:] if last else body[at : at + size]
            at += size
            if size < 255 or last:
                if packet is not None:
                    packets.append(bytes(packet))
                packet = bytearray()
        unfinished = bool(count) and lacing[-1] == 255 and not longer
        self._unfinished = packet if unfinished and packet is not None and len(packet) <= LONGEST_PACKET else None
        return packets


class PageWriter:
    """One logical stream, a packet a page: what is said leaves at once."""

    def __init__(self, serial: int):
        self._serial, self._number = serial, 0

    def page(self, packet: bytes, granule: int, last: bool = False) -> bytes:
        """`granule`: samples at 48 kHz up to the end of `packet` (0 for headers). Packets up to 65,024 bytes. `last`: the stream ends."""
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        flags = (0 if self._number else FIRST) | (LAST if last else 0)
        head = HEADER.pack(MARK, 0, flags, granule, self._serial, self._number, 0, len(lacing))
        page = head + lacing + packet
        self._number += 1
        return page[:_CHECKSUM_AT] + struct.pack("<I", checksum(page)) + page[_CHECKSUM_AT + 4 :]
