"""Where a JPEG file says where it was taken: which bytes are to be blanked. Its size stays.

The location lies in the GPS directory of the Exif segment (a TIFF structure), and perhaps in an XMP segment.
What cannot be understood is blanked whole.
"""

from __future__ import annotations

import struct

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_GPS_POINTER = 0x8825
_BARE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a segment."""
_XMP = (b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0")


def segments(head: bytes) -> list[tuple[int, bytes]]:
    """The APP1 segments at the beginning of a file: (offset of the content, content)."""
    found = []
    at = 2 if head.startswith(b"\xff\xd8") else len(head)
    while at + 4 <= len(head) and head[at] == 0xFF and head[at + 1] != 0xDA:
        if head[at + 1] == 0xFF:  # padding
            at += 1
            continue
        if head[at + 1] in _BARE:
            at += 2
            continue
        size = struct.unpack_from(">H", head, at + 2)[0]
        if head[at + 1] == 0xE1:
            found.append((at + 4, head[at + 4 : at + 2 + size]))
        at += 2 + size
    return found


def _directory(tiff: bytes, order: str, at: int) -> list[tuple[int, int, int, int]]:
    """The entries of a TIFF directory: (tag, offset of the entry, offset of the value, its size)."""
    (count,) = struct.unpack_from(order + "H", tiff, at)
    entries = []
    for number in range(count):
        place = at + 2 + 12 * number
        tag, kind, n, value = struct.unpack_from(order + "HHII", tiff, place)
        size = _TYPE_SIZES[kind] * n
        entries.append((tag, place, place + 8 if size <= 4 else value, size))
        if entries[-1][2] + size > len(tiff):
            raise ValueError("a value lies outside")
    return entries


def _gps(tiff: bytes) -> list[tuple[int, int]]:
    """The GPS directory and its values: (offset, size) in the TIFF structure."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    blanks = []
    for tag, place, _, _ in _directory(tiff, order, first):
        if tag == _GPS_POINTER:
            (at,) = struct.unpack_from(order + "I", tiff, place + 8)
            entries = _directory(tiff, order, at)
            blanks += [(value, size) for _, _, value, size in entries]
            blanks.append((at, 2 + 12 * len(entries)))
    return blanks


def blanks(head: bytes) -> list[tuple[int, int]]:
    """What is to be blanked in a file that begins so: (offset, size)."""
    found = []
    for at, content in segments(head):
        if content.startswith(b"Exif\0\0"):
            try:
                found += [(at + 6 + start, size) for start, size in _gps(content[6:])]
            except (KeyError, ValueError, struct.error):
                found.append((at + 6, len(content) - 6))
        elif content.startswith(_XMP):
            skip = content.index(b"\0") + 1
            found.append((at + skip, len(content) - skip))
    return found


def blanked(data: bytes, offset: int, places: list[tuple[int, int]]) -> bytes:
    """Bytes of the file from an offset on, with those places blanked."""
    out = bytearray(data)
    for start, size in places:
        begin, end = max(start - offset, 0), min(start + size - offset, len(out))
        if begin < end:
            out[begin:end] = bytes(end - begin)
    return bytes(out)
