"""Protobuf's wire format, read without a library: fields by name, of messages whose schema is stated."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
# numbers of a repeated field may be packed into one, or come one by one
UNPACKED = {"dims": VARINT, "ints": VARINT, "int32_data": VARINT, "int64_data": VARINT, "uint64_data": VARINT}
UNPACKED |= {"floats": FIXED32, "float_data": FIXED32, "double_data": FIXED64}

Schema = Mapping[int, tuple[str, int]]  # field number → name and wire type


class Refused(Exception):
    """What is not allowed, for the message."""


class Part(NamedTuple):
    """Bytes start..end of a file, mapped or read; what is not asked for is not looked at."""

    data: mmap.mmap | bytes
    start: int
    end: int

    def text(self) -> str:
        """The beginning of it as text."""
        return self.data[self.start : min(self.end, self.start + 1000)].decode("utf-8", "backslashreplace")

    def raw(self) -> bytes:
        """All of it."""
        return self.data[self.start : self.end]

    def numbers(self, message: str) -> list[int]:
        """Packed numbers; raises Refused."""
        found, at = [], self.start
        while at < self.end:
            number, at = self._varint(at, message)
            found.append(number)
        return found

    def fields(self, message: str, schema: Schema) -> Iterator[tuple[str, int | Part]]:
        """Name and value of each field, in order; raises Refused for an unknown or malformed one."""
        at = self.start
        while at < self.end:
            tag, at = self._varint(at, message)
            number, wire = tag >> 3, tag & 7
            name, expected = schema.get(number, ("", -1))
            if wire != expected and UNPACKED.get(name, -1) != wire:
                raise Refused(f"field {number} of wire type {wire} in a {message}; expected none such")
            value: int | Part
            if wire == VARINT:
                value, at = self._varint(at, message)
            else:
                length, at = (FIXED_BYTES[wire], at) if wire != BYTES else self._varint(at, message)
                if length > self.end - at:
                    raise Refused(f"a {message}'s {name} of {length} bytes; {self.end - at} are left")
                value, at = Part(self.data, at, at + length), at + length
            yield name, value

    def _varint(self, at: int, message: str) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= self.end:
                break
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise Refused(f"a {message} that is cut off")


def signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return value - 2**64 if value >= 2**63 else value
