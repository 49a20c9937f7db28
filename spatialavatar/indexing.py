"""What an int means where batches are indexed: one row, with the batch axis kept."""


def row_slice(index: int, length: int) -> slice:
    """Row ``index`` of ``length`` (negative from the end) as a slice (a list would be copied to the device).

    Raises IndexError beyond the ends, where a slice would be empty.
    """
    if not -length <= index < length:
        raise IndexError(f"row {index} of a batch of {length}")
    return slice(index, index + 1 or None)
