"""Front-to-back compositing of three channels and its gradient: the compiled twin of ``splat/compositing.py``.

Everything happens on one tile of 8 x 32 pixels at a time, kept in small arrays in pixel order; one vector covers two
rows. Gaussians come nearest first. A pixel that is done carries its transmittance with a minus sign.

The backward pass walks front to back as well and repeats the forward decisions. With w_i = alpha_i T_i and the
incoming gradient v, all it needs per pixel is T_i and the rest r_i = sum over j > i of w_j (c_j . v) + T_end v_T:

    dL/dc_i = w_i v        dL/dalpha_i = T_i (c_i . v) - r_i / (1 - alpha_i)
"""

import numpy as np
from numba import prange

from spatialavatar.splat.cpu.binning import TILE_HEIGHT
from spatialavatar.splat.cpu.projection import RECORD, TILE_WIDTH
from spatialavatar.splat.cpu.runtime import kernel
from spatialavatar.splat.cpu.simd import (
    any_lane,
    broadcast,
    exp2,
    lane_x,
    lane_y,
    load,
    load_scalar,
    minus_abs,
    prefetch,
    select,
    store,
    sum_lanes,
)

PIXELS = TILE_WIDTH * TILE_HEIGHT
CHECK_EVERY = 8  # intersections between two looks for rows that are done


@kernel(inline=True)
def offsets(records, record, tile_x, tile_y, row):
    """From the pixels of two rows to the Gaussian's centre (px)."""
    dx = broadcast(load_scalar(records, record) - tile_x) - lane_x()
    dy = broadcast(load_scalar(records, record + 1) - tile_y - np.float32(row)) - lane_y()
    return dx, dy


@kernel(inline=True)
def exponent_terms(records, record, dx):
    """The parts of -sigma log2(e) = (square_y dy + cross) dy + square_x that do not change down a column."""
    minus_log2_e = np.float32(-1.4426950408889634)
    half = np.float32(0.5)
    square_x = dx * dx * (minus_log2_e * half * load_scalar(records, record + 2))
    cross = dx * (minus_log2_e * load_scalar(records, record + 3))
    square_y = broadcast(minus_log2_e * half * load_scalar(records, record + 4))
    return square_x, cross, square_y


@kernel(inline=True)
def alphas(square_x, cross, square_y, dy, opacity):
    """opacity exp(-sigma), the same capped at 0.999, and where it counts: at least 1/255, sigma not negative."""
    exponent = (square_y * dy + cross) * dy + square_x
    lowest = broadcast(np.float32(-100))
    raw = opacity * exp2(select(exponent > lowest, exponent, lowest))
    most = broadcast(np.float32(0.999))
    alpha = select(raw > most, most, raw)
    counts = (alpha >= np.float32(1 / 255)) & (exponent <= np.float32(0))
    return raw, alpha, counts


@kernel(inline=True)
def absorb(alpha, counts, before):
    """Weight alpha T and the transmittance left, unless that would end below 1e-4: then the pixel is done."""
    zero = broadcast(np.float32(0))
    weight = select(counts, alpha * before, zero)
    after = before - weight
    alive = after > np.float32(1e-4)
    return select(alive, weight, zero), select(alive, after, minus_abs(before)), counts & alive


@kernel(inline=True)
def alive_rows(transmittance, begin, end):
    """Shrink a range of rows (even numbers) to what has pixels that are not done."""
    zero = np.float32(0)
    while begin < end and not any_lane(load(transmittance, begin * TILE_WIDTH) > zero):
        begin += 2
    while end > begin and not any_lane(load(transmittance, (end - 2) * TILE_WIDTH) > zero):
        end -= 2
    return begin, end


@kernel(inline=True)
def fill(array, value):
    for i in range(array.shape[0]):
        array[i] = value


@kernel(inline=True)
def clear_rows(gradients, begin, end, used):
    """Intersections that changed no pixel have no gradients."""
    for i in range(begin, end):
        for k in range(used):
            gradients[i, k] = np.float32(0)


@kernel(fastmath=True)
def _segment(records, gaussian, tile_x, tile_y, begin, end, transmittance, red, green, blue):
    """Composite one Gaussian onto some rows of a tile."""
    record = np.int64(gaussian) * RECORD
    dx, dy = offsets(records, record, tile_x, tile_y, begin)
    square_x, cross, square_y = exponent_terms(records, record, dx)
    opacity = broadcast(load_scalar(records, record + 5))
    r = broadcast(load_scalar(records, record + 9))
    g = broadcast(load_scalar(records, record + 10))
    b = broadcast(load_scalar(records, record + 11))
    for pixel in range(begin * TILE_WIDTH, end * TILE_WIDTH, 16):
        _, alpha, counts = alphas(square_x, cross, square_y, dy, opacity)
        weight, after, _ = absorb(alpha, counts, load(transmittance, pixel))
        store(transmittance, pixel, after)
        store(red, pixel, load(red, pixel) + weight * r)
        store(green, pixel, load(green, pixel) + weight * g)
        store(blue, pixel, load(blue, pixel) + weight * b)
        dy = dy - np.float32(2)


@kernel(inline=True)
def store_shape_gradients(records, record, dx, s0, s1, s2, rows, row):
    """Gradients of centre, conic and opacity from the sums of q dy^k, q = dL/d(-sigma), over each lane's column."""
    a, b, c = load_scalar(records, record + 2), load_scalar(records, record + 3), load_scalar(records, record + 4)
    sx = s0 * dx
    q_x, q_y = sum_lanes(sx), sum_lanes(s1)
    half = np.float32(0.5)
    rows[row, 0] = -(a * q_x + b * q_y)
    rows[row, 1] = -(b * q_x + c * q_y)
    rows[row, 2] = -half * sum_lanes(sx * dx)
    rows[row, 3] = -sum_lanes(s1 * dx)
    rows[row, 4] = -half * sum_lanes(s2)
    rows[row, 5] = sum_lanes(s0) / load_scalar(records, record + 5)


@kernel(fastmath=True)
def _segment_backward(
    records, gaussian, tile_x, tile_y, begin, end, transmittance, rest, v_red, v_green, v_blue, rows, row
):
    """Gradients of one Gaussian from some rows of a tile."""
    record = np.int64(gaussian) * RECORD
    dx, dy = offsets(records, record, tile_x, tile_y, begin)
    square_x, cross, square_y = exponent_terms(records, record, dx)
    opacity = broadcast(load_scalar(records, record + 5))
    r = broadcast(load_scalar(records, record + 9))
    g = broadcast(load_scalar(records, record + 10))
    b = broadcast(load_scalar(records, record + 11))
    one, most = np.float32(1), np.float32(0.999)
    zero = broadcast(np.float32(0))
    s0 = s1 = s2 = zero
    sum_r = sum_g = sum_b = zero
    for pixel in range(begin * TILE_WIDTH, end * TILE_WIDTH, 16):
        raw, alpha, counts = alphas(square_x, cross, square_y, dy, opacity)
        before = load(transmittance, pixel)
        weight, after, contributes = absorb(alpha, counts, before)
        store(transmittance, pixel, after)
        vr, vg, vb = load(v_red, pixel), load(v_green, pixel), load(v_blue, pixel)
        sum_r = sum_r + weight * vr
        sum_g = sum_g + weight * vg
        sum_b = sum_b + weight * vb
        color_v = r * vr + g * vg + b * vb
        remaining = load(rest, pixel) - weight * color_v
        store(rest, pixel, remaining)
        v_alpha = before * color_v - remaining / (one - alpha)
        q = select(contributes & (raw <= most), raw * v_alpha, zero)
        s0 = s0 + q
        s1 = s1 + q * dy
        s2 = s2 + q * dy * dy
        dy = dy - np.float32(2)
    store_shape_gradients(records, record, dx, s0, s1, s2, rows, row)
    rows[row, 6] = sum_lanes(sum_r)
    rows[row, 7] = sum_lanes(sum_g)
    rows[row, 8] = sum_lanes(sum_b)


@kernel(parallel=True, fastmath=True)
def composite(records, first, gaussian, rows, work, work_count, features, transmittance_out, stop):
    """Features [H, W, 3] and final transmittance [H, W]; ``stop[t]`` is where tile t was found to be done."""
    height, width = transmittance_out.shape
    tiles_wide = (width + TILE_WIDTH - 1) // TILE_WIDTH
    for thread in prange(work.shape[0]):
        transmittance = np.empty(PIXELS, np.float32)
        red, green, blue = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
        for job in range(work_count[thread]):
            tile = work[thread, job]
            left, top = (tile % tiles_wide) * TILE_WIDTH, (tile // tiles_wide) * TILE_HEIGHT
            tile_x, tile_y = np.float32(left) + np.float32(0.5), np.float32(top) + np.float32(0.5)
            fill(transmittance, 1)
            fill(red, 0)
            fill(green, 0)
            fill(blue, 0)
            begin, end = first[tile], first[tile + 1]
            alive_begin, alive_end = 0, TILE_HEIGHT
            stop[tile] = end
            for i in range(begin, end):
                if i + 6 < end:
                    prefetch(records, np.int64(gaussian[i + 6]) * RECORD)
                row_begin, row_end = max(rows[i] & 255, alive_begin), min(rows[i] >> 8, alive_end)
                if row_end > row_begin:
                    _segment(records, gaussian[i], tile_x, tile_y, row_begin, row_end, transmittance, red, green, blue)
                if (i - begin) % CHECK_EVERY == CHECK_EVERY - 1:
                    alive_begin, alive_end = alive_rows(transmittance, alive_begin, alive_end)
                    if alive_begin >= alive_end:
                        stop[tile] = i + 1
                        break
            for y in range(min(TILE_HEIGHT, height - top)):
                for x in range(min(TILE_WIDTH, width - left)):
                    pixel = y * TILE_WIDTH + x
                    features[top + y, left + x, 0] = red[pixel]
                    features[top + y, left + x, 1] = green[pixel]
                    features[top + y, left + x, 2] = blue[pixel]
                    transmittance_out[top + y, left + x] = abs(transmittance[pixel])


@kernel(parallel=True, fastmath=True)
def composite_backward(
    records,
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
    """One row of ``gradients`` per intersection: screen centre 2, conic 3, opacity 1, colour 3."""
    height, width = final_transmittance.shape
    tiles_wide = (width + TILE_WIDTH - 1) // TILE_WIDTH
    for thread in prange(work.shape[0]):
        transmittance, rest = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
        v_red, v_green, v_blue = (
            np.empty(PIXELS, np.float32),
            np.empty(PIXELS, np.float32),
            np.empty(PIXELS, np.float32),
        )
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
            fill(v_red, 0)
            fill(v_green, 0)
            fill(v_blue, 0)
            for y in range(min(TILE_HEIGHT, height - top)):
                for x in range(min(TILE_WIDTH, width - left)):
                    pixel = y * TILE_WIDTH + x
                    v0, v1, v2 = (
                        v_features[top + y, left + x, 0],
                        v_features[top + y, left + x, 1],
                        v_features[top + y, left + x, 2],
                    )
                    v_red[pixel] = v0
                    v_green[pixel] = v1
                    v_blue[pixel] = v2
                    transmittance[pixel] = np.float32(1)
                    rest[pixel] = (
                        features[top + y, left + x, 0] * v0
                        + features[top + y, left + x, 1] * v1
                        + features[top + y, left + x, 2] * v2
                        - final_transmittance[top + y, left + x] * v_alpha[top + y, left + x]
                    )
            alive_begin, alive_end = 0, TILE_HEIGHT
            for i in range(begin, stop[tile]):
                if i + 6 < end:
                    prefetch(records, np.int64(gaussian[i + 6]) * RECORD)
                row_begin, row_end = max(rows[i] & 255, alive_begin), min(rows[i] >> 8, alive_end)
                if row_end > row_begin:
                    _segment_backward(
                        records,
                        gaussian[i],
                        tile_x,
                        tile_y,
                        row_begin,
                        row_end,
                        transmittance,
                        rest,
                        v_red,
                        v_green,
                        v_blue,
                        gradients,
                        i,
                    )
                else:
                    clear_rows(gradients, i, i + 1, 9)
                if (i - begin) % CHECK_EVERY == CHECK_EVERY - 1:
                    alive_begin, alive_end = alive_rows(transmittance, alive_begin, alive_end)
            clear_rows(gradients, stop[tile], end, 9)
