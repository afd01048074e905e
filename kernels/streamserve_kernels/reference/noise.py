"""Gumbel noise from a counter: no generator state, so a token's noise depends on (seed, position, token id) and nothing else.

All integers are 32 bits wide, products keep their low 32 bits, `>>>` is a logical shift. With murmur3's finaliser (Appleby)

    mix(h):  h ^= h >>> 16;  h *= 0x85ebca6b;  h ^= h >>> 13;  h *= 0xc2b2ae35;  h ^= h >>> 16

a line has two keys

    a = mix(seed_low ^ mix(position + 0x9e3779b9))        b = mix(seed_high ^ a ^ 0x85ebca77)

and a token the bits

    h = token_id * 0x9e3779b1 ^ a;  h ^= h >>> 16;  h *= 0x7feb352d;  h ^= b;  h ^= h >>> 15;  h *= 0x846ca68b;  m = h >>> 9

(the multipliers are Wellons' low-bias pair). With u = (2 m + 1) / 2**24, exact in fp32 and never 0 or 1, the noise is
-log(-log(u)): the argmax of logits plus noise is a sample of their softmax (Gumbel, 1954; Maddison et al., 2014). So is the
argmax of probabilities divided by -log(u), which takes one logarithm less.
"""

from __future__ import annotations

from torch import Tensor


def line_keys(seed_low: Tensor, seed_high: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The keys of each line, int32; all arguments [lines] int32."""
    a = _mix(seed_low ^ _mix(positions + _signed(0x9E3779B9)))
    return a, _mix(seed_high ^ a ^ _signed(0x85EBCA77))


def noise_bits(keys: tuple[Tensor, Tensor], token_ids: Tensor) -> Tensor:
    """The 23 random bits of each token; keys 2 x [lines], token_ids [lines or 1, tokens] -> [lines, tokens], all int32."""
    a, b = keys[0].unsqueeze(1), keys[1].unsqueeze(1)
    h = (token_ids * _signed(0x9E3779B1)) ^ a
    h ^= _shift(h, 16)
    h *= 0x7FEB352D
    h ^= b
    h ^= _shift(h, 15)
    h *= _signed(0x846CA68B)
    return _shift(h, 9)


def exponential_noise(keys: tuple[Tensor, Tensor], token_ids: Tensor) -> Tensor:
    """-log(u) of each token, fp32 and above 0; shapes as for `noise_bits`."""
    m = noise_bits(keys, token_ids)
    m *= 2
    m += 1
    u = m.float()
    u *= 2.0**-24
    return u.log_().neg_()


def _mix(h: Tensor) -> Tensor:
    h = h ^ _shift(h, 16)
    h *= _signed(0x85EBCA6B)
    h ^= _shift(h, 13)
    h *= _signed(0xC2B2AE35)
    h ^= _shift(h, 16)
    return h


def _shift(h: Tensor, bits: int) -> Tensor:
    """h >>> bits; torch shifts int32 arithmetically."""
    shifted = h >> bits
    shifted &= (1 << (32 - bits)) - 1
    return shifted


def _signed(word: int) -> int:
    """The int32 with the bits of an unsigned word."""
    return word - (1 << 32) if word >= 1 << 31 else word
