"""Counts the bytes that a compiled program moves, from its text: all operands and results in main memory."""

import dataclasses
import re
from typing import Any

_SIZES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "s64": 8, "u64": 8}
# Operations that move nothing, or whose bytes are counted for another instruction.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "iota"),
    *("copy-done", "slice-done", "fusion-done", "partition-id"),
}


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    operation: str
    operands: list[str]
    rest: str  # the line after the opening bracket of the operands


def moved_bytes(program: str, *, cached: bool = False) -> int:
    """The bytes of all operands and results in main memory of a compiled program's instructions.

    Every instruction of the entry computation passes over memory once. Instructions inside a fusion or a kernel do not.
    The body of a loop counts once for each iteration. If it reads or writes one slice of an array, only the slice
    counts.

    Args:
      program: the text of the compiled program.
      cached: whether an iteration of a loop fits into a cache that the program does not show. Arrays that an iteration
        makes for itself then count as nothing, and its repeated reads of an array count once.
    """
    found = re.findall(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$\n((?:.*\n)*?)\}", program, re.MULTILINE)
    computations = {name: _instructions(body) for _, name, body in found}
    (entry,) = [name for is_entry, name, _ in found if is_entry]
    return _moved(computations[entry], computations, cached)


def _instructions(body: str) -> list[_Instruction]:
    line = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
    found = []
    # The type of an asynchronous instruction is ((operands), result, context). The pattern allows no inner brackets.
    for text in re.sub(r"= \(\((.*?)\), ", r"= (\1, ", body).splitlines():
        if match := line.match(text):
            name, type_, operation, rest = match.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            found.append(_Instruction(name, type_, operation, operands, rest))
    return found


def _moved(instructions: list[_Instruction], computations: Any, cached: bool, in_turn: bool = False) -> int:
    types = {it.name: it.type for it in instructions}
    arguments = {it.name for it in instructions if it.operation == "parameter"}
    outside = {it.name for it in instructions if arguments & set(it.operands)}
    total, once = 0, dict.fromkeys(outside, 0)
    for it in instructions:
        if it.operation == "while":
            body, condition = (re.findall(rf"{x}=%?([\w.\-]+)", it.rest)[0] for x in ("body", "condition"))
            turns = re.findall(r'"known_trip_count":\{"n":"(\d+)"', it.rest)
            if not turns:  # the program of a TPU has the trip count only as the constant in the condition
                turns = [x.rest.split(")")[0] for x in computations[condition] if x.operation == "constant"]
            total += int(turns[0]) * _moved(computations[body], computations, cached, True)
        elif it.operation not in _FREE:
            read, written, in_place = _charged(it, [types.get(x, "") for x in it.operands], computations)
            if not (in_turn and cached):
                total += sum(read) + written
                continue
            for name, size in zip(it.operands, read, strict=True):
                once[name] = max(once.get(name, 0), size)
            total += written if in_place else 0
    return total + sum(once[name] for name in outside)


def _charged(it: _Instruction, taken: list[str], computations: Any) -> tuple[list[int], int, bool]:
    """The bytes read of each operand, the bytes written, and whether these are a slice of an operand."""
    read = [_bytes(type_) for type_ in taken]
    if it.operation in ("fusion", "fusion-start"):
        (inside,) = re.findall(r"calls=%?([\w.\-]+)", it.rest)
        # The type of an asynchronous fusion lists the operands again, then the result and a number.
        result = it.type if it.operation == "fusion" else ", ".join(_types(it.type)[len(taken) : -1])
        return _charged_by_fusion(computations[inside], read, _bytes(result))
    if it.operation == "dynamic-slice":
        return [min(read[0], _bytes(it.type, anywhere=True)), *read[1:]], _bytes(it.type), False
    if it.operation == "dynamic-update-slice":
        return [0, *read[1:]], min(_bytes(it.type), _bytes(taken[1], anywhere=True)), True
    if it.operation == "slice-start":  # copies a part of its operand to the chip
        return [min(read[0], _bytes(_types(it.type)[1], anywhere=True))], 0, False
    if it.operation == "copy-start":  # its type lists the result, then the operand again
        return read, _bytes(_types(it.type)[0]), False
    return read, _bytes(it.type), False


def _charged_by_fusion(inside: list[_Instruction], whole: list[int], result: int) -> Any:
    of = {it.name: it for it in inside}

    def origin(name: str) -> _Instruction:
        while of[name].operation == "bitcast":
            name = of[name].operands[0]
        return of[name]

    last, read = origin(inside[-1].name), [0] * len(whole)
    in_place = last.operation == "dynamic-update-slice"
    for it in inside:
        for position, operand in enumerate(it.operands):
            if it.operation == "bitcast" or operand not in of or origin(operand).operation != "parameter":
                continue
            number, size = int(origin(operand).rest.split(")")[0]), None
            if position == 0 and it.operation == "dynamic-slice":
                size = _bytes(it.type, anywhere=True)
            elif position == 0 and it is last and in_place:
                size = 0
            read[number] = whole[number] if size is None else max(read[number], min(size, whole[number]))
    if in_place:
        result = min(result, _bytes(of[last.operands[1]].type, anywhere=True))
    return read, result, in_place


def _types(tuple_: str) -> list[str]:
    return [match[0] for match in re.finditer(r"\w+\[[\d,]*\](\{[^}]*\})?", tuple_)]


def _bytes(type_: str, anywhere: bool = False) -> int:
    total = 0
    for dtype, dimensions, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", type_):
        if dtype not in _SIZES or ("S(" in layout and not anywhere):  # S(1) is memory on the chip
            continue
        size = _SIZES[dtype]
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size
    return total
