"""PNG files without the chunks that are not needed for their pixels."""

from __future__ import annotations

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def only_pixels(content: bytes) -> bytes:
    """Return a PNG file with its critical chunks and its transparency alone.

    Pillow refuses an entire image for a long text, a large color profile or a wrong check sum in a chunk that
    nobody needs, and unpacks what it does not refuse. Of an animation this leaves the still image.
    """
    chunks, at = memoryview(content), len(SIGNATURE)
    kept: list[bytes | memoryview] = [SIGNATURE]
    while at + 8 <= len(chunks):
        kind = bytes(chunks[at + 4 : at + 8])
        end = at + 12 + int.from_bytes(chunks[at : at + 4], "big")  # length, kind, content, check sum
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(chunks[at:end])
        at = end
    return b"".join(kept)
