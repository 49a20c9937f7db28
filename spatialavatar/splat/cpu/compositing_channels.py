"""Compositing of any number of channels: as ``compositing.py``, with the colours outside the records.

Channels are padded with zeros to a multiple of four. Per-pixel channels lie vector by vector within a tile: channel k
of the 16 pixels from p on starts at ``(p / 16 * channels + k) * 16``.
"""

import numpy as np
from numba import prange

from spatialavatar.splat.cpu.binning import TILE_HEIGHT
from spatialavatar.splat.cpu.compositing import (
    CHECK_EVERY,
    PIXELS,
    absorb,
    alive_rows,
    alphas,
    clear_rows,
    exponent_terms,
    fill,
    offsets,
    store_shape_gradients,
)
from spatialavatar.splat.cpu.projection import RECORD, TILE_WIDTH
from spatialavatar.splat.cpu.runtime import kernel
from spatialavatar.splat.cpu.simd import any_lane, broadcast, load, load_scalar, prefetch, select, store, sum_lanes

BLOCK = 4  # channels handled together


def padded_channels(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK


def gradient_width(channels: int) -> int:
    """Floats in an intersection's row of gradients: whole cache lines."""
    return -(-(6 + padded_channels(channels)) // 16) * 16


def pad_colors(colors: np.ndarray) -> np.ndarray:
    padded = np.zeros((colors.shape[0], padded_channels(colors.shape[1])), np.float32)
    padded[:, : colors.shape[1]] = colors
    return padded


@kernel(fastmath=True)
def _segment(records, colors, gaussian, tile_x, tile_y, begin, end, transmittance, accumulated):
    """Composite one Gaussian onto some rows of a tile."""
    channels = colors.shape[1]
    color = np.int64(gaussian) * channels
    record = np.int64(gaussian) * RECORD
    dx, dy = offsets(records, record, tile_x, tile_y, begin)
    square_x, cross, square_y = exponent_terms(records, record, dx)
    opacity = broadcast(load_scalar(records, record + 5))
    for pixel in range(begin * TILE_WIDTH, end * TILE_WIDTH, 16):
        _, alpha, counts = alphas(square_x, cross, square_y, dy, opacity)
        weight, after, contributes = absorb(alpha, counts, load(transmittance, pixel))
        store(transmittance, pixel, after)
        if any_lane(contributes):
            for k in range(channels):
                at = pixel * channels + 16 * k
                store(accumulated, at, load(accumulated, at) + weight * load_scalar(colors, color + k))
        dy = dy - np.float32(2)


@kernel(fastmath=True)
def _segment_backward(
    records, colors, gaussian, tile_x, tile_y, begin, end, transmittance, rest, v_features, weights, rows, row
):
    """Gradients of one Gaussian from some rows of a tile; ``weights`` is scratch for a tile's alpha T."""
    channels = colors.shape[1]
    color = np.int64(gaussian) * channels
    record = np.int64(gaussian) * RECORD
    dx, dy = offsets(records, record, tile_x, tile_y, begin)
    square_x, cross, square_y = exponent_terms(records, record, dx)
    opacity = broadcast(load_scalar(records, record + 5))
    one, most = np.float32(1), np.float32(0.999)
    zero = broadcast(np.float32(0))
    s0 = s1 = s2 = zero
    for pixel in range(begin * TILE_WIDTH, end * TILE_WIDTH, 16):
        raw, alpha, counts = alphas(square_x, cross, square_y, dy, opacity)
        before = load(transmittance, pixel)
        weight, after, contributes = absorb(alpha, counts, before)
        store(transmittance, pixel, after)
        store(weights, pixel, weight)
        if any_lane(contributes):
            at = pixel * channels
            even = odd = zero
            for k in range(0, channels, 2):
                even = even + load(v_features, at + 16 * k) * load_scalar(colors, color + k)
                odd = odd + load(v_features, at + 16 * k + 16) * load_scalar(colors, color + k + 1)
            color_v = even + odd
            remaining = load(rest, pixel) - weight * color_v
            store(rest, pixel, remaining)
            v_alpha = before * color_v - remaining / (one - alpha)
            q = select(contributes & (raw <= most), raw * v_alpha, zero)
            s0 = s0 + q
            s1 = s1 + q * dy
            s2 = s2 + q * dy * dy
        dy = dy - np.float32(2)
    store_shape_gradients(records, record, dx, s0, s1, s2, rows, row)
    for k in range(0, channels, BLOCK):
        k0 = k1 = k2 = k3 = zero
        for pixel in range(begin * TILE_WIDTH, end * TILE_WIDTH, 16):
            weight = load(weights, pixel)
            at = pixel * channels + 16 * k
            k0 = k0 + weight * load(v_features, at)
            k1 = k1 + weight * load(v_features, at + 16)
            k2 = k2 + weight * load(v_features, at + 32)
            k3 = k3 + weight * load(v_features, at + 48)
        rows[row, 6 + k] = sum_lanes(k0)
        rows[row, 7 + k] = sum_lanes(k1)
        rows[row, 8 + k] = sum_lanes(k2)
        rows[row, 9 + k] = sum_lanes(k3)


@kernel(parallel=True, fastmath=True)
def composite(records, colors, first, gaussian, rows, work, work_count, features, transmittance_out, stop):
    """Features [H, W, C] and final transmittance [H, W]; ``stop[t]`` is where tile t was found to be done."""
    height, width, channels = features.shape
    tiles_wide = (width + TILE_WIDTH - 1) // TILE_WIDTH
    padded = colors.shape[1]
    for thread in prange(work.shape[0]):
        transmittance, accumulated = np.empty(PIXELS, np.float32), np.empty(PIXELS * padded, np.float32)
        for job in range(work_count[thread]):
            tile = work[thread, job]
            left, top = (tile % tiles_wide) * TILE_WIDTH, (tile // tiles_wide) * TILE_HEIGHT
            tile_x, tile_y = np.float32(left) + np.float32(0.5), np.float32(top) + np.float32(0.5)
            fill(transmittance, 1)
            fill(accumulated, 0)
            begin, end = first[tile], first[tile + 1]
            alive_begin, alive_end = 0, TILE_HEIGHT
            stop[tile] = end
            for i in range(begin, end):
                if i + 6 < end:
                    prefetch(records, np.int64(gaussian[i + 6]) * RECORD)
                    prefetch(colors, np.int64(gaussian[i + 6]) * padded)
                row_begin, row_end = max(rows[i] & 255, alive_begin), min(rows[i] >> 8, alive_end)
                if row_end > row_begin:
                    _segment(
                        records, colors, gaussian[i], tile_x, tile_y, row_begin, row_end, transmittance, accumulated
                    )
                if (i - begin) % CHECK_EVERY == CHECK_EVERY - 1:
                    alive_begin, alive_end = alive_rows(transmittance, alive_begin, alive_end)
                    if alive_begin >= alive_end:
                        stop[tile] = i + 1
                        break
            for y in range(min(TILE_HEIGHT, height - top)):
                for x in range(min(TILE_WIDTH, width - left)):
                    pixel = y * TILE_WIDTH + x
                    at = (pixel // 16) * 16 * padded + pixel % 16
                    for k in range(channels):
                        features[top + y, left + x, k] = accumulated[at + 16 * k]
                    transmittance_out[top + y, left + x] = abs(transmittance[pixel])


@kernel(parallel=True, fastmath=True)
def composite_backward(
    records,
    colors,
    first,
    gaussian,
    rows,
    work,
    work_count,
    features,
    final_transmittance,
    stop,
    v_features,
    v_alpha,
    gradients,
):
    """One row of ``gradients`` per intersection: screen centre 2, conic 3, opacity 1, colour C (padded)."""
    height, width, channels = features.shape
    tiles_wide = (width + TILE_WIDTH - 1) // TILE_WIDTH
    padded = colors.shape[1]
    used = 6 + padded
    for thread in prange(work.shape[0]):
        transmittance, rest = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
        weights, v_tile = np.empty(PIXELS, np.float32), np.empty(PIXELS * padded, np.float32)
        for job in range(work_count[thread]):
            tile = work[thread, job]
            left, top = (tile % tiles_wide) * TILE_WIDTH, (tile // tiles_wide) * TILE_HEIGHT
            tile_x, tile_y = np.float32(left) + np.float32(0.5), np.float32(top) + np.float32(0.5)
            begin, end = first[tile], first[tile + 1]
            if begin == end:
                continue
            # outside the image pixels are done from the start
            fill(transmittance, -1)
            fill(rest, 0)
            fill(v_tile, 0)
            for y in range(min(TILE_HEIGHT, height - top)):
                for x in range(min(TILE_WIDTH, width - left)):
                    pixel = y * TILE_WIDTH + x
                    at = (pixel // 16) * 16 * padded + pixel % 16
                    total = -final_transmittance[top + y, left + x] * v_alpha[top + y, left + x]
                    for k in range(channels):
                        v = v_features[top + y, left + x, k]
                        v_tile[at + 16 * k] = v
                        total += features[top + y, left + x, k] * v
                    transmittance[pixel] = np.float32(1)
                    rest[pixel] = total
            alive_begin, alive_end = 0, TILE_HEIGHT
            for i in range(begin, stop[tile]):
                if i + 6 < end:
                    prefetch(records, np.int64(gaussian[i + 6]) * RECORD)
                    prefetch(colors, np.int64(gaussian[i + 6]) * padded)
                row_begin, row_end = max(rows[i] & 255, alive_begin), min(rows[i] >> 8, alive_end)
                if row_end > row_begin:
                    _segment_backward(
                        records,
                        colors,
                        gaussian[i],
                        tile_x,
                        tile_y,
                        row_begin,
                        row_end,
                        transmittance,
                        rest,
                        v_tile,
                        weights,
                        gradients,
                        i,
                    )
                else:
                    clear_rows(gradients, i, i + 1, used)
                if (i - begin) % CHECK_EVERY == CHECK_EVERY - 1:
                    alive_begin, alive_end = alive_rows(transmittance, alive_begin, alive_end)
            clear_rows(gradients, stop[tile], end, used)
