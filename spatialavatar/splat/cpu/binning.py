"""Which Gaussians touch which tile, nearest first.

Tiles are 8 pixels wide and 32 high: a vector of 16 floats covers two rows. There is no sort of intersections: the
N depths are radix-sorted once, and Gaussians append themselves to the lists of their tiles in that order, which is
the order of gsplat (by depth, equal depths by index). Within a tile column the rows that a Gaussian can touch are
found exactly, from its ellipse.
"""

import math
from dataclasses import dataclass

import numba
import numpy as np
from numba import prange

from spatialavatar.splat.cpu.projection import TILE_WIDTH
from spatialavatar.splat.cpu.runtime import kernel, scratch
from spatialavatar.splat.cpu.simd import prefetch

TILE_HEIGHT = 32


@dataclass(frozen=True)
class TileLists:
    """The intersections of Gaussians with tiles, grouped by tile (row-major), nearest first within a tile.

    ``gaussian[i]`` and ``rows[i]`` (first row | end row << 8 within the tile, even numbers) describe intersection i;
    tile t owns ``first[t] : first[t + 1]``. The other way round, Gaussian n takes part in the intersections
    ``of_gaussian[first_of_gaussian[n] : first_of_gaussian[n + 1]]``. ``work[k, : work_count[k]]`` are the tiles that
    thread k composites.
    """

    first: np.ndarray
    gaussian: np.ndarray
    rows: np.ndarray
    first_of_gaussian: np.ndarray
    of_gaussian: np.ndarray
    work: np.ndarray
    work_count: np.ndarray


def depth_order(records: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Indices of the visible Gaussians by increasing depth, ties by index; valid until the guard is released."""
    order, sorted_order = scratch("order", (2, records.shape[0]), np.int32)
    keys, sorted_keys = scratch("keys", (2, records.shape[0]), np.uint32)
    visible = _radix_sort(records.view(np.uint32), columns, order, sorted_order, keys, sorted_keys)
    return sorted_order[:visible]


def tile_lists(order: np.ndarray, records: np.ndarray, columns: np.ndarray, width: int, height: int) -> TileLists:
    count, threads = records.shape[0], numba.get_num_threads()
    tiles_wide, tiles_high = -(-width // TILE_WIDTH), -(-height // TILE_HEIGHT)
    tiles = tiles_wide * tiles_high

    first_span = scratch("first span", (count + 1,), np.int32)
    spans = scratch("spans", (_prefix_sum_widths(columns, first_span), 2), np.int32)
    tile_counts, touched = scratch("tile counts", (threads, tiles), np.int32), scratch("touched", (count,), np.int32)
    _count_intersections(records, columns, first_span, height, tiles_wide, spans, tile_counts, touched)

    first, first_of_gaussian = np.empty(tiles + 1, np.int32), np.empty(count + 1, np.int32)
    total = _prefix_sum_counts(tile_counts, touched, first, first_of_gaussian)
    gaussian, rows, of_gaussian = (np.empty(total, np.int32) for _ in range(3))
    _fill_lists(
        order, columns, first_span, spans, first_of_gaussian, first, first[:-1].copy(), tiles_wide, threads,
        gaussian, rows, of_gaussian,
    )  # fmt: skip

    work, work_count = _deal_tiles(first, threads)
    return TileLists(first, gaussian, rows, first_of_gaussian, of_gaussian, work, work_count)


@kernel()
def _radix_sort(records, columns, order, sorted_order, keys, sorted_keys):
    """Three stable passes of 11 bits over the depths' bit patterns, which sort like the positive floats they are.

    The result is in ``sorted_order``, as the number of passes is odd.
    """
    visible = 0
    for n in range(records.shape[0]):
        if columns[n, 1] > columns[n, 0]:
            keys[visible] = records[n, 8]
            order[visible] = n
            visible += 1
    positions = np.zeros((3, 2048), np.int32)
    for i in range(visible):
        key = keys[i]
        positions[0, key & 2047] += 1
        positions[1, (key >> 11) & 2047] += 1
        positions[2, key >> 22] += 1
    for digit in range(3):
        start = 0
        for bucket in range(2048):
            size = positions[digit, bucket]
            positions[digit, bucket] = start
            start += size
    for digit in range(3):
        shift = np.uint32(11 * digit)
        position = positions[digit]
        for i in range(visible):
            key = keys[i]
            bucket = (key >> shift) & np.uint32(2047)
            slot = position[bucket]
            position[bucket] = slot + 1
            sorted_keys[slot] = key
            sorted_order[slot] = order[i]
        keys, sorted_keys = sorted_keys, keys
        order, sorted_order = sorted_order, order
    return visible


@kernel(inline=True, fastmath=True)
def _rows_in_columns(record, left, right):
    """Highest and lowest y (px) of the ellipse sigma <= edge between two x; low > high if it lies elsewhere.

    At x offset d from the centre the ellipse spans y = (-B d -+ sqrt(2 C edge - d^2 (A C - B^2))) / C.
    """
    a, b, c = record[2], record[3], record[4]
    left -= record[0]
    right -= record[0]
    top_at = -(b / a) * record[6]  # x offset of the ellipse's extreme in y
    upper = min(max(top_at, left), right)
    lower = min(max(-top_at, left), right)
    room = c * (np.float32(2) * record[12] + np.float32(1e-3))
    under_upper = room - upper * upper * record[13]
    under_lower = room - lower * lower * record[13]
    if under_upper < 0 or under_lower < 0:
        return np.float32(1), np.float32(0)
    high = record[1] + (-b * upper + math.sqrt(under_upper)) / c
    low = record[1] + (-b * lower - math.sqrt(under_lower)) / c
    return low, high


@kernel()
def _prefix_sum_widths(columns, first_span):
    total = 0
    for n in range(columns.shape[0]):
        first_span[n] = total
        total += columns[n, 1] - columns[n, 0]
    first_span[columns.shape[0]] = total
    return total


@kernel(parallel=True, fastmath=True)
def _count_intersections(records, columns, first_span, height, tiles_wide, spans, tile_counts, touched):
    """Pixel rows (first, end) of every Gaussian in each of its tile columns, and how often tiles are touched."""
    threads = tile_counts.shape[0]
    chunk = (records.shape[0] + threads - 1) // threads
    half, slack = np.float32(0.5), np.float32(0.01)
    for thread in prange(threads):
        for tile in range(tile_counts.shape[1]):
            tile_counts[thread, tile] = 0
        for n in range(thread * chunk, min(records.shape[0], (thread + 1) * chunk)):
            count = 0
            span = first_span[n]
            for column in range(columns[n, 0], columns[n, 1]):
                left = np.float32(column * TILE_WIDTH) + half
                low, high = _rows_in_columns(records[n], left, left + np.float32(TILE_WIDTH - 1))
                begin, end = 0, 0
                if low <= high:
                    # row centres lie at +0.5, so rows inside are those from ceil(low - 0.5) to floor(high - 0.5);
                    # both ends are clamped before their conversion to integers, which rounds down
                    low = min(max(low + half - slack, np.float32(0)), np.float32(height))
                    high = min(max(high + half + slack, np.float32(0)), np.float32(height))
                    begin, end = int(low), int(high)
                if end > begin:
                    for tile_row in range(begin // TILE_HEIGHT, (end - 1) // TILE_HEIGHT + 1):
                        tile_counts[thread, tile_row * tiles_wide + column] += 1
                        count += 1
                spans[span, 0] = begin
                spans[span, 1] = end
                span += 1
            touched[n] = count


@kernel()
def _prefix_sum_counts(tile_counts, touched, first, first_of_gaussian):
    total = 0
    for n in range(touched.shape[0]):
        first_of_gaussian[n] = total
        total += touched[n]
    first_of_gaussian[touched.shape[0]] = total
    start = 0
    for tile in range(tile_counts.shape[1]):
        first[tile] = start
        for thread in range(tile_counts.shape[0]):
            start += tile_counts[thread, tile]
    first[tile_counts.shape[1]] = start
    return total


@kernel(parallel=True)
def _fill_lists(
    order,
    columns,
    first_span,
    spans,
    first_of_gaussian,
    first,
    cursor,
    tiles_wide,
    threads,
    gaussian,
    rows,
    of_gaussian,
):
    """Every thread walks all Gaussians, nearest first, and fills the lists of its own tile columns."""
    visible = order.shape[0]
    for thread in prange(threads):
        own_begin, own_end = tiles_wide * thread // threads, tiles_wide * (thread + 1) // threads
        for i in range(visible):
            n = order[i]
            if i + 12 < visible:
                ahead = np.int64(order[i + 12])
                prefetch(columns, ahead * 2)
                prefetch(first_span, ahead)
                prefetch(first_of_gaussian, ahead)
            if i + 6 < visible:
                prefetch(spans, np.int64(first_span[order[i + 6]]) * 2)
            begin, end = columns[n, 0], columns[n, 1]
            if end <= own_begin or begin >= own_end:
                continue
            span, slot = first_span[n], first_of_gaussian[n]
            for column in range(begin, min(np.int64(end), own_end)):
                row_begin, row_end = spans[span, 0], spans[span, 1]
                span += 1
                if row_end <= row_begin:
                    continue
                tile_begin, tile_end = row_begin // TILE_HEIGHT, (row_end - 1) // TILE_HEIGHT + 1
                if column < own_begin:
                    slot += tile_end - tile_begin
                    continue
                for tile_row in range(tile_begin, tile_end):
                    tile = tile_row * tiles_wide + column
                    at = cursor[tile]
                    cursor[tile] = at + 1
                    gaussian[at] = n
                    of_gaussian[slot] = at
                    slot += 1
                    # whole pairs of rows, as a vector covers two
                    top = max(row_begin - tile_row * TILE_HEIGHT, 0) & ~1
                    bottom = (min(row_end - tile_row * TILE_HEIGHT, TILE_HEIGHT) + 1) & ~1
                    rows[at] = top | (bottom << 8)


def _deal_tiles(first: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Deal tiles to threads by decreasing size, there and back again, so that all have about the same to do."""
    largest_first = np.argsort(first[:-1] - first[1:], kind="stable")
    seat = np.arange(len(largest_first)) % (2 * threads)
    hands = [largest_first[np.minimum(seat, 2 * threads - 1 - seat) == thread] for thread in range(threads)]
    work = np.zeros((threads, len(largest_first)), np.int64)
    for thread, hand in enumerate(hands):
        work[thread, : len(hand)] = hand
    return work, np.array([len(hand) for hand in hands])
