"""An invisible keyed watermark on the brightness of a picture: it outlives what strips metadata.

Each 8x8 block's low frequencies are moved to the nearest point of a lattice that stands for a 0, or of one that stands
for a 1 (quantisation index modulation with dither: Chen and Wornell, IEEE Trans. Information Theory 47(4), 2001). Every
payload has a codeword of 256 bits, and only the key tells which. A bit has several places, spread over the picture by
the key, which vote; a mark is found where at most 66 of the 256 bits differ from a codeword, however sure the votes
look.

How often that happens by chance is arithmetic. Where each lattice begins is random as well, so in a picture that wasn't
marked with the key every bit is a fair coin, whatever the picture shows; one of the 2**16 codewords is that near with a
probability of at most 2**16 * sum(comb(256, wrong) for wrong in range(67)) / 2**256 = 1.4e-10.

Shapes: H W height and width in px, C colour, N blocks, P pixels of a block, F its low frequencies.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from scipy.fft import idctn

from vca.errors import SettingsError

PAYLOADS = 2**16
CODE_BITS = 256
MOST_WRONG = 66
SIDE = 8  # of a block, px: JPEG's own grid
FEWEST_BLOCKS = 64  # of a 64x64 picture: three places for a bit
ROUNDS = 4  # clipping at black and white undoes a part of the mark; each round puts it where there is room
FREQUENCIES = ((0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0), (4, 0), (3, 1), (2, 2))
LUMA_C = np.array([0.299, 0.587, 0.114], np.float32)  # as in JPEG


def embed(pixels_HWC: np.ndarray, *, key: bytes, payload: int) -> np.ndarray:
    """The picture with the mark; uint8 RGB in and out. payload: 0 to 65535.

    Errors: SettingsError for a payload out of range, or a picture with fewer than 64 whole blocks of 8x8 px.
    """
    if not 0 <= payload < PAYLOADS:
        raise SettingsError(f"the watermark's payload is {payload}; allowed is 0 to {PAYLOADS - 1}")
    if not _fits(pixels_HWC):
        height, width = pixels_HWC.shape[:2]
        raise SettingsError(f"{width}x{height} px are too few for the watermark; it needs 64x64 px, or switch it off")
    bit_NF, start_NF = _places(key, *_grid(pixels_HWC))
    step = _step(pixels_HWC)
    lattice_NF = start_NF * step + step / 2 * np.unpackbits(_codebook(key)[payload].view(np.uint8))[bit_NF]
    marked_HWC = pixels_HWC.astype(np.float32)
    blocks_HWC = _whole_blocks(marked_HWC)
    for _ in range(ROUNDS):
        away_NF = _spectrum(blocks_HWC) - lattice_NF
        change_NF = step * np.round(away_NF / step) - away_NF
        blocks_HWC += _pixels(change_NF, blocks_HWC.shape)[..., None]
        np.clip(blocks_HWC, 0, 255, out=blocks_HWC)
    return np.round(marked_HWC).astype(np.uint8)


def detect(pixels_HWC: np.ndarray, *, key: bytes) -> int | None:
    """The payload of a uint8 RGB picture that was marked with this key, or None."""
    if not _fits(pixels_HWC):
        return None
    bit_NF, start_NF = _places(key, *_grid(pixels_HWC))
    turns_NF = _spectrum(_whole_blocks(pixels_HWC)) / _step(pixels_HWC) - start_NF
    vote_NF = np.cos(2 * np.pi * turns_NF)  # 1 on the lattice of a 0, -1 on that of a 1, nothing half-way
    votes = np.bincount(bit_NF.ravel(), vote_NF.ravel(), CODE_BITS)
    wrong = np.bitwise_count(_codebook(key) ^ np.packbits(votes < 0).view(np.uint64)).sum(axis=1)
    payload = int(wrong.argmin())
    return payload if wrong[payload] <= MOST_WRONG else None


def _grid(pixels_HWC: np.ndarray) -> tuple[int, int]:
    return pixels_HWC.shape[0] // SIDE, pixels_HWC.shape[1] // SIDE


def _fits(pixels_HWC: np.ndarray) -> bool:
    rows, columns = _grid(pixels_HWC)
    return rows * columns >= FEWEST_BLOCKS


def _whole_blocks(pixels_HWC: np.ndarray) -> np.ndarray:
    rows, columns = _grid(pixels_HWC)
    return pixels_HWC[: rows * SIDE, : columns * SIDE]


def _step(pixels_HWC: np.ndarray) -> float:
    """From a lattice's point to the next, in the units of an orthonormal DCT.

    JPEG at quality 50 moves these frequencies by up to 8, and a place votes right up to a quarter of a step. The many
    votes of a larger picture bear the smaller step, which is seen less.
    """
    rows, columns = _grid(pixels_HWC)
    return 20.0 if rows * columns < 32 * 32 else 16.0


def _stream(key: bytes, purpose: str, length: int) -> bytes:
    """Bytes that look random without the key; the same with every numpy, which its own generators don't promise."""
    return hashlib.shake_256(len(key).to_bytes(8, "big") + key + purpose.encode()).digest(length)


@lru_cache(maxsize=4)
def _codebook(key: bytes) -> np.ndarray:
    """[PAYLOADS, CODE_BITS / 64] uint64: the codeword of every payload, packed."""
    return np.frombuffer(_stream(key, "codebook", PAYLOADS * CODE_BITS // 8), np.uint64).reshape(PAYLOADS, -1)


@lru_cache(maxsize=8)
def _places(key: bytes, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """bit_NF: which bit a place carries. start_NF: where its lattice begins, in steps, float32 in 0..1."""
    shape = (rows * columns, len(FREQUENCIES))
    count = shape[0] * shape[1]
    order, start = np.frombuffer(_stream(key, f"places {rows} {columns}", 8 * count), "<u4").reshape(2, count)
    bit = np.empty(count, np.uint8)  # what is kept between pictures is to be small
    bit[np.argsort(order, kind="stable")] = (np.arange(count) % CODE_BITS).astype(np.uint8)
    return bit.reshape(shape), (start / 2**32).astype(np.float32).reshape(shape)


@lru_cache(maxsize=1)
def _basis() -> np.ndarray:
    """[P, F] float32: the pixels of each frequency, orthonormal."""
    units = np.zeros((len(FREQUENCIES), SIDE, SIDE), np.float32)
    for unit, frequency in zip(units, FREQUENCIES, strict=True):
        unit[frequency] = 1
    waves: np.ndarray = idctn(units, axes=(1, 2), norm="ortho")
    return np.ascontiguousarray(waves.reshape(len(FREQUENCIES), -1).T)


def _spectrum(blocks_HWC: np.ndarray) -> np.ndarray:
    """[N, F] float32: the low frequencies of each block's luma."""
    rows, columns = _grid(blocks_HWC)
    luma_HW = blocks_HWC @ LUMA_C
    luma_NP = luma_HW.reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2).reshape(rows * columns, -1)
    spectrum_NF: np.ndarray = luma_NP @ _basis()
    return spectrum_NF


def _pixels(spectrum_NF: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[H, W]: the luma that has these low frequencies, and no others."""
    luma_NP = spectrum_NF @ _basis().T
    rows, columns = shape[0] // SIDE, shape[1] // SIDE
    luma_HW: np.ndarray = luma_NP.reshape(rows, columns, SIDE, SIDE).swapaxes(1, 2).reshape(shape[:2])
    return luma_HW
