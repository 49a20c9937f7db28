"""The values of a row group of ours, straight from its bytes.

ShardWriter uses the simplest part of Parquet (parquet.apache.org, "File Format": data pages of version 1, plain
encoding, no compression, a page a column), so that parts of a row group can be read without the file's footer and
without the rest. Parquet's reader wants both, and crafted metadata end its whole process (pyarrow 26).
"""

from collections.abc import Sequence

_DATA_PAGE, _PLAIN, _RLE = 0, 0, 3  # PageType, Encoding
_INTEGERS, _BINARY, _STRUCT = (4, 5, 6), 8, 12  # types of Thrift's compact protocol
_DEEPEST = 3

Fields = dict[int, "int | bytes | Fields"]


def read_values(data: memoryview, listed: Sequence[bool], most: int) -> list[list[memoryview]]:
    """The values of each column in turn, nulls left out; ``listed`` says which columns are lists.

    Raises ValueError where the bytes are anything but that, or a column has more than ``most`` values.
    """
    columns, at = [], 0
    for is_list in listed:
        body, at = _page(data, at)
        columns.append(_values(body, 2 if is_list else 1, most))
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left over")
    return columns


def _page(view: memoryview, at: int) -> tuple[memoryview, int]:
    """The content of the page that begins at ``at``, and where it ends."""
    header, at = _struct(view, at, 1)
    size, details = header.get(3), header.get(5)
    if header.get(1) != _DATA_PAGE or not isinstance(details, dict) or not isinstance(size, int):
        raise ValueError("not a data page")
    if [details.get(field) for field in (2, 3, 4)] != [_PLAIN, _RLE, _RLE] or header.get(2) != size:
        raise ValueError("a page that is compressed or encoded")
    if not 0 <= size <= len(view) - at:
        raise ValueError(f"a page of {size} bytes where {len(view) - at} are left")
    return view[at : at + size], at + size


def _values(body: memoryview, level_runs: int, most: int) -> list[memoryview]:
    """Values behind the levels, which say where nulls and new lists are: each with its length before it."""
    at, end = 0, len(body)
    for _ in range(level_runs):
        at += 4 + int.from_bytes(body[at : at + 4], "little")
    values: list[memoryview] = []
    while at + 4 <= end:
        if len(values) == most:
            raise ValueError(f"more than {most} values in a column")
        begin = at + 4
        at = begin + int.from_bytes(body[at:begin], "little")
        values.append(body[begin:at])
    if at != end:
        raise ValueError("values that go beyond their page")
    return values


def _struct(view: memoryview, at: int, depth: int) -> tuple[Fields, int]:
    """The fields of a struct by their numbers (Thrift, compact protocol), and where it ends."""
    fields: Fields = {}
    number = 0
    while kind := _byte(view, at):
        at += 1
        number += kind >> 4
        kind &= 15
        if kind in _INTEGERS:
            value, at = _varint(view, at)
            fields[number] = value >> 1 ^ -(value & 1)
        elif kind == _BINARY:
            length, at = _varint(view, at)
            fields[number] = bytes(view[at : at + length])
            at += length
        elif kind == _STRUCT and depth < _DEEPEST:
            fields[number], at = _struct(view, at, depth + 1)
        else:
            raise ValueError("not the header of a page")
    return fields, at + 1


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        byte = _byte(view, at + i)
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("not the header of a page")


def _byte(view: memoryview, at: int) -> int:
    if at >= len(view):
        raise ValueError("the bytes end within the header of a page")
    return view[at]
