"""a pickle of lists, tuples and ints → those values, without unpickling.

Source: the opcodes of Python's pickle protocols 0 to 5, as `pickletools` documents them. Differs from a
restricted `pickle.Unpickler` in that nothing but these values can be built, whatever the file says: no
opcode that imports, calls, builds or allocates by a number in the file is known here.
"""

import os
import pickletools
from pathlib import Path
from typing import Any

from ..files import check_regular

MAX_PICKLE_BYTES = 1 << 23
_MAX_INT_BITS = 63
_MARK = object()
_INTEGERS = {"INT", "LONG", "LONG1", "BININT", "BININT1", "BININT2"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(path: str | os.PathLike[str]) -> Any:
    """The value of a pickle file that holds only lists, tuples and ints of at most 63 bits.

    Raises:
        ValueError: naming the file, and the opcode and byte where it holds anything else, is damaged or
            is larger than 8 MiB.
    """
    path = Path(path)
    check_regular(path)
    with open(path, "rb") as file:
        data = file.read(MAX_PICKLE_BYTES + 1)
    if len(data) > MAX_PICKLE_BYTES:
        raise ValueError(f"{path.name}: larger than {MAX_PICKLE_BYTES} bytes")
    machine = _Machine()
    at: int | None = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            at = position
            if opcode.name == "STOP":
                if len(machine.stack) != 1 or machine.stack[0] is _MARK:
                    raise ValueError("the pickle does not end with one value")
                return machine.stack[0]
            machine.do(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path.name}: byte {at}: {error}; only lists, tuples and ints are read from a pickle"
        ) from None
    raise ValueError(f"{path.name}: ends without a value")


class _Machine:
    """The stack and the memo of a pickle, for a handful of opcodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _INTEGERS:
            if type(argument) is not int or argument.bit_length() > _MAX_INT_BITS:
                raise ValueError(f"{name} is not a plain integer")
            stack.append(argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack.append(tuple(self._take(len(stack) - size)))
        elif name == "TUPLE":
            stack.append(tuple(self._after_mark()))
        elif name == "LIST":
            stack.append(self._after_mark())
        elif name == "APPEND":
            value = self._take(len(stack) - 1)
            self._list_on_top().extend(value)
        elif name == "APPENDS":
            values = self._after_mark()
            self._list_on_top().extend(values)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in _PUTS:
            self._memo[argument] = self._top()
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"opcode {name} is not allowed")

    def _take(self, begin: int) -> list[Any]:
        if begin < 0:
            raise ValueError("the stack is too short")
        values = self.stack[begin:]
        if any(value is _MARK for value in values):
            raise ValueError("a mark stands where a value should")
        del self.stack[begin:]
        return values

    def _after_mark(self) -> list[Any]:
        begin = len(self.stack)
        while begin and self.stack[begin - 1] is not _MARK:
            begin -= 1
        if not begin:
            raise ValueError("no mark")
        values = self.stack[begin:]
        del self.stack[begin - 1 :]
        return values

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("no value to memoize")
        return self.stack[-1]

    def _list_on_top(self) -> list[Any]:
        if not self.stack or not isinstance(self.stack[-1], list):
            raise ValueError("nothing to append to")
        return self.stack[-1]
