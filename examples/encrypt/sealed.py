"""How a file lies on the disk: a header, then blocks of 4,096 bytes, each sealed with AES-256-GCM.

An empty file is empty. A block on the disk takes 4,124 bytes: nonce, text, tag. File and number are sealed
in, so that blocks cannot be swapped. The last one is whole as well, with zeros behind the text; behind it
come as many bytes as it is filled with, so that the length on the disk says the size. The header seals the
size too, or from and to while it changes: what is cut off is missed, and a server that is killed half-way
leaves a file that reads.
"""

from __future__ import annotations

import errno
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BLOCK = 4096
EXTRA = 28
MAGIC = b"fbseal02"
HEADER = 8 + 16 + EXTRA + 16
MOST_ZEROS = 256 << 20
"""The longest gap that is made: it is written out, while others wait."""


class BrokenError(Exception):
    """The file is not what was written."""


def n_blocks(size: int) -> int:
    """How many blocks a file of this size has."""
    return -(-size // BLOCK)


def stored_size(size: int) -> int:
    """How many bytes on the disk a file of this size takes."""
    return HEADER + n_blocks(size) * (BLOCK + EXTRA) + size % BLOCK if size else 0


def plain_size(stored: int) -> int:
    """The size of a file that takes so many bytes on the disk."""
    blocks, rest = divmod(max(0, stored - HEADER), BLOCK + EXTRA)
    return max(0, blocks * BLOCK + (rest - BLOCK if rest else 0))


class Sealed:
    """An open file on the disk, as what it says. Blocking calls; one at a time.

    Args:
        fd: Open to read, and to write if it is written.
        key: 32 bytes.
    """

    def __init__(self, fd: int, key: bytes) -> None:
        self._fd = fd
        self._cipher = AESGCM(key)
        self._id = b""
        self._size = self._least = 0
        self._is_changing = False

    # ------------------------------------------------------------------------------------ seals

    def _seal(self, text: bytes, about: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, text, about)

    def _open(self, sealed: bytes, about: bytes, what: str) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:12], sealed[12:], about)
        except (InvalidTag, ValueError) as error:
            raise BrokenError(f"{what}: the seal does not fit: another key, or it was changed") from error

    def _put(self, sealed: bytes, at: int) -> None:
        done = 0
        while done < len(sealed):  # a disk that is full takes a part, and says so with the next call
            done += os.pwrite(self._fd, sealed[done:], at + done)

    def _get_header(self) -> None:
        stored = os.fstat(self._fd).st_size
        head = os.pread(self._fd, HEADER, 0)
        self._id, self._size = head[8:24] or os.urandom(16), plain_size(stored)
        if not stored:
            return
        if len(head) < HEADER or not head.startswith(MAGIC):
            raise BrokenError("it has no header")
        self._least, most = struct.unpack("<2Q", self._open(head[24:], head[:24], "header"))
        self._is_changing = self._least != most
        if not self._least <= self._size <= most:
            raise BrokenError(f"it was {most} bytes long, and is {self._size}")

    def _put_header(self, least: int, most: int) -> None:
        about = MAGIC + self._id
        self._put(about + self._seal(struct.pack("<2Q", least, most), about), 0)

    def _block(self, number: int) -> bytes:
        sealed = os.pread(self._fd, BLOCK + EXTRA, HEADER + number * (BLOCK + EXTRA))
        try:
            return self._open(sealed, self._id + struct.pack("<Q", number), f"block {number}")
        except BrokenError:
            if self._is_changing and number >= n_blocks(self._least):
                return bytes(BLOCK)  # the server was killed before it was written
            raise

    def _put_block(self, number: int, text: bytes) -> None:
        sealed = self._seal(text, self._id + struct.pack("<Q", number))
        self._put(sealed, HEADER + number * (BLOCK + EXTRA))

    # ------------------------------------------------------------------------------------ the text

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from anywhere; fewer at the end."""
        self._get_header()
        size = min(size, self._size - offset)
        if size <= 0:
            return b""
        first = offset // BLOCK
        text = b"".join(self._block(number) for number in range(first, n_blocks(offset + size)))
        return text[offset - first * BLOCK :][:size]

    def write(self, offset: int, data: bytes) -> None:
        """Bytes to anywhere; a gap before them is zeros."""
        self.finish()
        old, end = self._size, offset + len(data)
        if offset - old > MOST_ZEROS:
            raise OSError(errno.EFBIG, "a gap that long is not written")
        if end <= old:
            self._put_text(offset, data)
            return
        if old % BLOCK:
            self._block(old // BLOCK)  # that nothing is begun that cannot be taken back
        self._put_header(old, end)
        try:
            os.ftruncate(self._fd, stored_size(end))
            self._put_text(offset, data)
        except OSError:
            self._shrink(old, end)
            raise
        self._put_header(end, end)

    def _put_text(self, offset: int, data: bytes) -> None:
        """Seal the blocks that have some of it, and those of a gap before it."""
        there = n_blocks(self._size)
        for number in range(min(offset // BLOCK, there), n_blocks(offset + len(data))):
            start = number * BLOCK
            block = data[max(0, start - offset) : max(0, start + BLOCK - offset)]
            if len(block) < BLOCK:
                piece, at = block, max(0, offset - start)
                block = self._block(number) if number < there else bytes(BLOCK)
                block = block[:at] + piece + block[at + len(piece) :]
            self._put_block(number, block)

    def resize(self, size: int) -> None:
        """Cut it off, or extend it with zeros. Emptying works on a broken file too."""
        if size == 0:
            os.ftruncate(self._fd, 0)
            return
        self.finish()
        if size < self._size:
            self._shrink(size, self._size)
        elif size > self._size:
            self.write(size, b"")
        else:
            os.ftruncate(self._fd, stored_size(size))  # its times change

    def _shrink(self, size: int, old: int) -> None:
        if not size:
            os.ftruncate(self._fd, 0)
            return
        number, rest = divmod(size, BLOCK)
        kept = self._block(number)[:rest] if rest else b""
        self._put_header(size, old)
        if kept:
            self._put_block(number, kept.ljust(BLOCK, b"\0"))
        os.ftruncate(self._fd, stored_size(size))
        self._put_header(size, size)

    # ------------------------------------------------------------------------------ after a crash

    def finish(self) -> None:
        """End a change of the size that a server which was killed had begun."""
        self._get_header()
        if self._is_changing:
            for number in range(n_blocks(self._least), n_blocks(self._size)):
                self._put_block(number, self._block(number))
            self._put_header(self._size, self._size)
            self._is_changing = False

    def check(self) -> bool:
        """Look at every seal; whether there is something to finish.

        Raises:
            BrokenError: One does not fit.
        """
        self._get_header()
        for number in range(n_blocks(self._size)):
            self._block(number)
        return self._is_changing
