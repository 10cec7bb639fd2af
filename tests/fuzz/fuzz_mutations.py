"""Ways to break a file: each mutation is a function of the bytes and a random generator."""

from collections.abc import Callable

import numpy as np

Draw = np.random.Generator
Mutation = Callable[[bytes, Draw], bytes]


def _span(data: bytes, draw: Draw) -> tuple[int, int]:
    start = int(draw.integers(0, len(data)))
    return start, min(len(data), start + 1 + int(draw.integers(0, max(2, len(data) // 4))))


def flip_bits(data: bytes, draw: Draw) -> bytes:
    broken = bytearray(data)
    for _ in range(int(draw.integers(1, 12))):
        broken[int(draw.integers(0, len(broken)))] ^= 1 << int(draw.integers(0, 8))
    return bytes(broken)


def cut(data: bytes, draw: Draw) -> bytes:
    return data[: int(draw.integers(0, len(data)))]


def swap_chunks(data: bytes, draw: Draw) -> bytes:
    a, b, c = sorted(int(place) for place in draw.integers(0, len(data) + 1, 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def repeat_chunk(data: bytes, draw: Draw) -> bytes:
    start, end = _span(data, draw)
    return data[:end] + data[start:end] * int(draw.integers(1, 5)) + data[end:]


def zero_chunk(data: bytes, draw: Draw) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + bytes(end - start) + data[end:]


def noise_chunk(data: bytes, draw: Draw) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + draw.bytes(end - start) + data[end:]


def absurd_number(data: bytes, draw: Draw) -> bytes:
    """Write a huge or odd number where there may be a size, an offset or a count."""
    place = int(draw.integers(0, min(len(data), 256)))
    value = int(draw.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0x80000000]))
    size = int(draw.choice([2, 4]))
    written = (value & (256**size - 1)).to_bytes(size, str(draw.choice(["little", "big"])))  # type: ignore[arg-type]
    return data[:place] + written + data[place + size :]


def append_noise(data: bytes, draw: Draw) -> bytes:
    return data + draw.bytes(int(draw.integers(1, 200)))


def another_head(data: bytes, draw: Draw) -> bytes:
    """Put the first bytes of another format in front."""
    heads = [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"RIFF\xff\xff\0\0WEBPVP8L",
    ]
    heads += [b"PK\3\4", b"PAR1", b"ARROW1\0\0", b"\x93NUMPY\1\0", b"\x80\4", b"\0\0\0\x1cftypavif", b"\1\xda", b"qoif"]
    head = heads[int(draw.integers(0, len(heads)))]
    return head + data[len(head) :]


MUTATIONS: dict[str, Mutation] = {
    function.__name__: function
    for function in (
        flip_bits,
        cut,
        swap_chunks,
        repeat_chunk,
        zero_chunk,
        noise_chunk,
        absurd_number,
        append_noise,
        another_head,
    )
}


def mutated(data: bytes, draw: Draw) -> tuple[str, bytes]:
    """Return the name of a mutation, and the data broken by it and perhaps by a second one."""
    names = [str(name) for name in draw.choice(list(MUTATIONS), int(draw.integers(1, 3)))]
    for name in names:
        data = MUTATIONS[name](data, draw) if data else data
    return names[0], data
