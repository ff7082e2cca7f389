"""Codes of 2 to 8 bits, written shorter without loss: DEFLATE over whole bytes of codes.

Codes near zero are much more frequent than large ones, so their order-0 entropy is 10 to 20 % below their width. As
many codes as fit lie in one byte (four of 2 bits, two of 3 or 4, else one), and zlib's Huffman code of these bytes
comes within a hundredth of that entropy, at two to four bits sometimes below it, for neighbours in a filter are alike.
A range coder of our own would gain no more and decode slower (benchmarks/results/coded.md). Matches (LZ77) are tried
too: they help where weights repeat, and elsewhere make it longer, so the shorter one is taken.

Cost: writing 11 million codes takes 0.3 s; reading them takes no longer than reading plain streams. A reader
knows from shapes how many bytes come out, and never makes one more.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

from xfer.quant.weights import largest_code

_WAYS = ((1, zlib.Z_HUFFMAN_ONLY), (6, zlib.Z_DEFAULT_STRATEGY))
_MEMORY = 9  # of zlib: the longest blocks, so the fewest tables


def encode(q: Tensor, bits: int) -> Tensor:
    """uint8 [n] from int8 codes of any shape."""
    raw = _grouped(q, bits)
    streams = [_deflated(raw, level, strategy) for level, strategy in _WAYS]
    return torch.frombuffer(bytearray(min(streams, key=len)), dtype=torch.uint8)


def decode(stream: Tensor, bits: int, num_codes: int) -> Tensor:
    """int8 [num_codes] from uint8 [n]; ValueError where no writer made this stream. Never holds more than 8 bytes a
    code, whatever the stream says.
    """
    per_byte = 8 // bits
    expected = -(-num_codes // per_byte)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # one byte more than there may be: 0 would mean no bound
        raw = inflate.decompress(stream.numpy().tobytes(), expected + 1)
    except zlib.error as error:
        raise ValueError(f"the coded stream is damaged ({error})") from None
    if len(raw) != expected or not inflate.eof or inflate.unused_data or inflate.unconsumed_tail:
        raise ValueError(f"the coded stream is not one of {num_codes} codes of {bits} bits")
    octets = np.frombuffer(raw, np.uint8)
    codes = np.empty((expected, per_byte), np.uint8)
    for place in range(per_byte):
        codes[:, place] = octets >> (place * bits) & (2**bits - 1)
    if per_byte * bits < 8 and bool((octets >> (per_byte * bits)).any()):
        raise ValueError("bits between codes are set")
    flat = codes.reshape(-1)
    if flat[num_codes:].any():
        raise ValueError("bits after the last code are set")
    signed = (flat[:num_codes] - np.uint8(2 ** (bits - 1))).view(np.int8)  # wraps around below zero, as it should
    if num_codes and int(signed.min()) < -largest_code(bits):
        raise ValueError(f"a code lies outside -{largest_code(bits)} .. {largest_code(bits)}")
    return torch.from_numpy(signed)


def _grouped(q: Tensor, bits: int) -> bytes:
    """As many codes a byte as fit, 2^(bits - 1) added to each as in a plain stream, the first one lowest."""
    per_byte = 8 // bits
    codes = (q.detach().cpu().flatten().to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    places = torch.nn.functional.pad(codes, (0, -codes.numel() % per_byte)).view(-1, per_byte)
    octets = places[:, 0].clone()
    for place in range(1, per_byte):
        octets |= places[:, place] << (place * bits)
    return octets.numpy().tobytes()


def _deflated(raw: bytes, level: int, strategy: int) -> bytes:
    """Without zlib's header and checksum: whoever ships the file ships its digest."""
    coder = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, _MEMORY, strategy)
    return coder.compress(raw) + coder.flush()
