"""How a file lies on the disk: a header with the size, then blocks, each sealed with AES-256-GCM.

An empty file is empty. A block of 4,096 bytes takes 4,124: nonce, text, tag. Number and file are sealed in,
so blocks cannot be swapped; the header seals the size, so that the end cannot be cut off unseen.
"""

from __future__ import annotations

import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BLOCK = 4096
EXTRA = 28
MAGIC = b"fbseal01"
HEADER = 8 + 16 + EXTRA + 8


class BrokenError(Exception):
    """The file is not what was written."""


def stored_size(size: int) -> int:
    """How many bytes on the disk a file of this size takes."""
    full, rest = divmod(size, BLOCK)
    return HEADER + full * (BLOCK + EXTRA) + (rest + EXTRA if rest else 0) if size else 0


def plain_size(stored: int) -> int:
    """The size of a file that takes so many bytes on the disk."""
    full, rest = divmod(max(0, stored - HEADER), BLOCK + EXTRA)
    return full * BLOCK + max(0, rest - EXTRA)


class Sealed:
    """An open file on the disk, as what it says. Blocking calls; one at a time.

    Args:
        fd: Open to read, and to write if it is written.
        key: 32 bytes.
    """

    def __init__(self, fd: int, key: bytes) -> None:
        self._fd = fd
        self._cipher = AESGCM(key)

    def size(self) -> int:
        """The size."""
        return plain_size(os.fstat(self._fd).st_size)

    def _file_id(self) -> bytes:
        head = os.pread(self._fd, HEADER, 0)
        if not head:
            return b""
        if len(head) < HEADER or not head.startswith(MAGIC):
            raise BrokenError("it has no header")
        return head[8:24]

    def _seal(self, text: bytes, about: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, text, about)

    def _open(self, sealed: bytes, about: bytes) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:12], sealed[12:], about)
        except (InvalidTag, ValueError) as error:
            raise BrokenError("the seal does not fit: another key, or it was changed") from error

    def _put_header(self, file_id: bytes, size: int) -> None:
        sealed = self._seal(struct.pack("<Q", size), MAGIC + file_id)
        os.pwrite(self._fd, MAGIC + file_id + sealed, 0)

    def _block(self, file_id: bytes, number: int) -> bytes:
        sealed = os.pread(self._fd, BLOCK + EXTRA, HEADER + number * (BLOCK + EXTRA))
        return self._open(sealed, file_id + struct.pack("<Q", number)) if sealed else b""

    def _put_block(self, file_id: bytes, number: int, text: bytes) -> None:
        sealed = self._seal(text, file_id + struct.pack("<Q", number))
        os.pwrite(self._fd, sealed, HEADER + number * (BLOCK + EXTRA))

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from anywhere; fewer at the end."""
        file_id = self._file_id()
        size = min(size, self.size() - offset)
        if size <= 0:
            return b""
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        text = b"".join(self._block(file_id, number) for number in range(first, last + 1))
        return text[offset - first * BLOCK :][:size]

    def write(self, offset: int, data: bytes) -> None:
        """Bytes to anywhere; a gap before them is zeros."""
        old = self.size()
        file_id = self._file_id() or os.urandom(16)
        if offset > old:
            data, offset = bytes(offset - old) + data, old
        end = max(old, offset + len(data))
        for number in range(offset // BLOCK, (offset + len(data) + BLOCK - 1) // BLOCK):
            start = number * BLOCK
            block = bytearray(self._block(file_id, number))
            piece = data[max(0, start - offset) : start + BLOCK - offset]
            at = max(0, offset - start)
            block[at : at + len(piece)] = piece
            self._put_block(file_id, number, bytes(block))
        if end != old:
            self._put_header(file_id, end)

    def resize(self, size: int) -> None:
        """Cut it off, or extend it with zeros."""
        old = self.size()
        if size > old:
            for start in range(old, size, 1 << 20):
                self.write(start, bytes(min(1 << 20, size - start)))
        elif size < old:
            kept = self.read(size // BLOCK * BLOCK, size % BLOCK)
            os.ftruncate(self._fd, stored_size(size))
            if size:
                file_id = self._file_id()
                if kept:
                    self._put_block(file_id, size // BLOCK, kept)
                self._put_header(file_id, size)

    def check(self) -> None:
        """Look at every seal.

        Raises:
            BrokenError: One does not fit.
        """
        stored = os.fstat(self._fd).st_size
        if not stored:
            return
        head = os.pread(self._fd, HEADER, 0)
        file_id = self._file_id()
        (size,) = struct.unpack("<Q", self._open(head[24:], MAGIC + file_id))
        if stored_size(size) != stored:
            raise BrokenError(f"it should take {stored_size(size)} bytes and takes {stored}")
        for number in range((size + BLOCK - 1) // BLOCK):
            self._block(file_id, number)
