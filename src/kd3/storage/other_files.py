"""Recognition of unexpected files by their first bytes, so that messages can name a remedy."""

from __future__ import annotations

GZIP, BZIP2, XZ, ZSTANDARD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
COMPRESSED = (GZIP, BZIP2, XZ, ZSTANDARD)
ZIP = (b"PK\3\4", b"PK\5\6")
TAR, TAR_PLACE = b"ustar", 257
LFS = b"version https://git-lfs.github.com/spec/"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
FIRST = 512  # bytes to recognise a file


def archive_by_contents(first: bytes) -> str | None:
    """Return "tar" (also a compressed one) or "zip" by a file's first bytes, otherwise None."""
    if first.startswith(ZIP):
        return "zip"
    is_tar = first.startswith(COMPRESSED) or first[TAR_PLACE : TAR_PLACE + len(TAR)] == TAR
    return "tar" if is_tar else None


def stand_in(first: bytes) -> str | None:
    """Return a description of a stand-in for a file; None if it may be the file itself."""
    if first.startswith(LFS):
        return "a Git LFS pointer, which stands for the file: git lfs pull fetches it"
    return None


def what_it_is(data: bytes) -> str:
    """Describe a file that is not the expected image; empty if unknown."""
    if (found := stand_in(data)) is not None:
        return found
    if archive_by_contents(data[:FIRST]) is not None:
        return "an archive inside another, or under another name, which is not opened: unpack it"
    if data.startswith(PICKLE):
        return "a pickle, perhaps a batch of CIFAR, which is not opened inside an archive: unpack that"
    if data.startswith(UTF16):
        return "text in UTF-16"
    return ""
