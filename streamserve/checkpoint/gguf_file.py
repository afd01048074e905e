"""Reads a .gguf file: its metadata, and where each tensor's bytes lie.

Used in any process, without torch. The `gguf` package supplies the format's numbers (types, block sizes) and dequantisation;
the header is parsed here because the package's reader makes an array object of every string, seconds for a tokenizer's 100 000.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from streamserve.errors import ConfigError, ModelNotSupported

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8
_ARRAY = 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    shape   as torch and numpy order it: slowest dimension first
    kind    how its numbers are stored
    offset  of its first byte in the file
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int

    @property
    def num_bytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape, dtype=np.int64)) // block * block_bytes


@dataclass(frozen=True)
class GgufFile:
    """A mapped file; a tensor is read when it is used.

    metadata  every key of the header; arrays as lists
    tensors   by name, in the order of the file
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data: np.ndarray[Any, np.dtype[np.uint8]]

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A tensor's stored bytes, [rows, bytes of a row]; a read-only view of the file. Raises KeyError."""
        tensor = self.tensors[name]
        stored = self.data[tensor.offset : tensor.offset + tensor.num_bytes]
        rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
        return stored.reshape(rows, -1)


def open_gguf(path: Path) -> GgufFile:
    """Parse the header of a .gguf file and map its tensors.

    Raises `ModelNotSupported` when it is no GGUF, of another version, damaged, or one part of a split model, and `ConfigError`
    when it can't be read.
    """
    try:
        with path.open("rb") as file:
            data = mmap(file.fileno(), 0, access=ACCESS_READ)
        metadata, tensors = _parse_header(data)
        is_split = metadata.get("split.count", 1) > 1
        is_truncated = any(tensor.offset + tensor.num_bytes > len(data) for tensor in tensors.values())
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror or error}") from error
    # What a damaged header makes of lengths and types can go wrong in any of these ways.
    except (struct.error, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise ModelNotSupported(f"{path}: damaged or unknown GGUF header ({error}); download the file again") from error
    if is_split:
        raise ModelNotSupported(f"{path}: one part of a split GGUF; join the parts with llama-gguf-split --merge first")
    if is_truncated:
        raise ModelNotSupported(f"{path}: the file ends before its last tensor; download it again")
    return GgufFile(path, metadata, tensors, np.frombuffer(data, dtype=np.uint8))


def _parse_header(data: mmap) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if data[:4] != MAGIC:
        raise ValueError("it does not begin with 'GGUF'")
    version, tensor_count, key_count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"version {version}, supported are 2 and 3")
    at = 24
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key, at = _string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        metadata[key], at = _value(data, at + 4, kind)
    infos = []
    for _ in range(tensor_count):
        info, at = _tensor_info(data, at)
        infos.append(info)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    start = -(-at // alignment) * alignment
    return metadata, {name: GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in infos}


def _string(data: mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    return data[at + 8 : end].decode(), end


def _value(data: mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _string(data, at)
    if kind == _ARRAY:
        return _array(data, at)
    layout = _SCALARS[kind]
    return struct.unpack_from(layout, data, at)[0], at + struct.calcsize(layout)


def _array(data: mmap, at: int) -> tuple[list[Any], int]:
    kind, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind in _SCALARS:
        items = np.frombuffer(data, dtype=np.dtype(_SCALARS[kind]), count=length, offset=at)
        return items.tolist(), at + items.nbytes
    if kind == _STRING:
        return _strings(data, at, length)
    values: list[Any] = []
    for _ in range(length):
        value, at = _value(data, at, kind)
        values.append(value)
    return values, at


def _strings(data: mmap, at: int, count: int) -> tuple[list[str], int]:
    """A tokenizer has 100 000 of them, which is all the time that parsing takes."""
    read_length = struct.Struct("<Q").unpack_from
    values = []
    for _ in range(count):
        start = at + 8
        at = start + read_length(data, at)[0]
        values.append(data[start:at].decode())
    return values, at


def _tensor_info(data: mmap, at: int) -> tuple[tuple[str, tuple[int, ...], GGMLQuantizationType, int], int]:
    name, at = _string(data, at)
    (num_dims,) = struct.unpack_from("<I", data, at)
    dims = struct.unpack_from(f"<{num_dims}Q", data, at + 4)
    at += 4 + 8 * num_dims
    kind, offset = struct.unpack_from("<IQ", data, at)
    return (name, dims[::-1], GGMLQuantizationType(kind), offset), at + 12
