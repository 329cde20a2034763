"""Numbers that a file has in fewer bits, made float32 again, a few rows at a time.

`gguf` knows how ggml's types are packed. What it gives is exact: every such number has one float32.
"""

import numpy as np

from converters.space import Encoding


def rows_for(encoding: Encoding, begin: int, nbytes: int) -> tuple[int, int, int]:
    """Bytes `begin … begin+nbytes` of the float32 numbers: first byte and length in the file of the rows that have
    them, and how many of the rows' own bytes come before."""
    row = encoding.row_elements * np.dtype(np.float32).itemsize
    first, last = begin // row, -(-(begin + nbytes) // row)
    return (
        encoding.begin + first * encoding.row_bytes,
        (last - first) * encoding.row_bytes,
        begin - first * row,
    )


def decoded(encoding: Encoding, content: bytearray) -> memoryview:
    """Whole rows as the bytes of float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.frombuffer(content, np.uint8).reshape(-1, encoding.row_bytes)
    values = dequantize(rows, GGMLQuantizationType[encoding.name])
    return np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8).data
