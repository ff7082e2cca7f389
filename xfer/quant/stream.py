"""Codes of 2 to 8 bits as a dense little-endian bit stream: code i fills bits i*b .. i*b + b - 1, bit k is byte k // 8.

Codes are stored with 2^(b-1) added, so the symmetric range never uses the pattern of all zeros and a file of holes is
refused instead of read as small weights. Eight codes of b bits are exactly b bytes and fit one 64-bit word: both
directions are a handful of vectorised shifts, about 0.1 s for ten million codes, with 8 bytes of workspace a code.
"""

import torch
from torch import Tensor

from xfer.quant.weights import largest_code


def num_bytes(num_codes: int, bits: int) -> int:
    return -(-num_codes * bits // 8)


def to_stream(q: Tensor, bits: int) -> Tensor:
    """uint8 [ceil(n * bits / 8)] from int8 codes of any shape with n elements; unused bits at the end are zero."""
    codes = q.detach().cpu().flatten().to(torch.int64) + 2 ** (bits - 1)
    words = torch.nn.functional.pad(codes, (0, -codes.numel() % 8)).view(-1, 8)  # [n / 8, codes of one word]
    word = (words << _steps(8, bits)).sum(1, keepdim=True)  # disjoint bits: the sum is an or
    octets = (word >> _steps(bits, 8)) & 0xFF  # [n / 8, bits]
    return octets.to(torch.uint8).flatten()[: num_bytes(q.numel(), bits)].clone()


def from_stream(stream: Tensor, bits: int, num_codes: int) -> Tensor:
    """int8 [num_codes] from uint8 [ceil(num_codes * bits / 8)]; ValueError where no writer made this stream."""
    expected = num_bytes(num_codes, bits)
    if stream.dtype != torch.uint8 or stream.shape != (expected,):
        raise ValueError(f"{num_codes} codes of {bits} bits are {expected} bytes, not {list(stream.shape)}")
    octets = torch.nn.functional.pad(stream.to(torch.int64), (0, -expected % bits)).view(-1, bits)
    word = (octets << _steps(bits, 8)).sum(1, keepdim=True)
    codes = ((word >> _steps(8, bits)) & (2**bits - 1)).flatten()
    if bool(codes[num_codes:].any()):
        raise ValueError("bits after the last code are set")
    signed = codes[:num_codes] - 2 ** (bits - 1)
    if num_codes and int(signed.abs().max()) > largest_code(bits):
        raise ValueError(f"a code lies outside -{largest_code(bits)} .. {largest_code(bits)}")
    return signed.to(torch.int8)


def _steps(count: int, width: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64) * width
