"""How many bytes a compiled program moves, read from its text: every operand and result in the main memory."""

import dataclasses
import re

_SIZES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "s64": 8, "u64": 8}
# Bits of a program that move nothing, or whose bytes another instruction is charged with.
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
    rest: str  # of the line


def moved_bytes(program: str) -> int:
    """The bytes of operands and results of a compiled program's instructions, of those in the main memory.

    Every instruction of the entry computation is a pass over memory; what is inside a fusion or a kernel is not. A
    loop's body counts as often as it runs, and of an array that it takes or puts one slice of, the slice counts.
    """
    found = re.findall(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$\n((?:.*\n)*?)\}", program, re.MULTILINE)
    computations = {name: _instructions(body) for _, name, body in found}
    (entry,) = [name for is_entry, name, _ in found if is_entry]
    return _moved(computations[entry], computations)


def _instructions(body: str) -> list[_Instruction]:
    line = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
    found = []
    # The type of what runs by itself, (operands), result, context, has brackets inside.
    for text in re.sub(r"= \(\((.*?)\), ", r"= (\1, ", body).splitlines():
        if match := line.match(text):
            name, type_, operation, rest = match.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            found.append(_Instruction(name, type_, operation, operands, rest))
    return found


def _moved(instructions: list[_Instruction], computations: dict[str, list[_Instruction]]) -> int:
    total, types = 0, {}
    for it in instructions:
        types[it.name] = it.type
        if it.operation in _FREE:
            continue
        taken = [types.get(operand, "") for operand in it.operands]
        if it.operation == "while":
            (body,) = re.findall(r"body=%?([\w.\-]+)", it.rest)
            (turns,) = re.findall(r'"known_trip_count":\{"n":"(\d+)"', it.rest)
            total += int(turns) * _moved(computations[body], computations)
        elif it.operation in ("fusion", "fusion-start"):
            (inside,) = re.findall(r"calls=%?([\w.\-]+)", it.rest)
            result = it.type
            if it.operation == "fusion-start":  # its type names the operands again, and a number
                result = ", ".join(_types(it.type)[len(taken) : -1])
            total += _moved_by_fusion(computations[inside], taken, result)
        elif it.operation == "dynamic-slice":
            total += _bytes(it.type) + min(_bytes(taken[0]), _bytes(it.type, anywhere=True))
        elif it.operation == "dynamic-update-slice":
            total += _bytes(taken[1]) + min(_bytes(it.type), _bytes(taken[1], anywhere=True))
        elif it.operation == "slice-start":  # a part of its operand, on its way to the chip
            total += min(_bytes(taken[0]), _bytes(_types(it.type)[1], anywhere=True))
        elif it.operation == "copy-start":  # its result names its operand again
            total += _bytes(taken[0]) + _bytes(_types(it.type)[0])
        else:
            total += _bytes(it.type) + sum(map(_bytes, taken))
    return total


def _moved_by_fusion(inside: list[_Instruction], taken: list[str], result: str) -> int:
    of = {it.name: it for it in inside}
    number = {it.name: int(it.rest.split(")")[0]) for it in inside if it.operation == "parameter"}

    def origin(name: str) -> str:
        while of[name].operation == "bitcast":
            name = of[name].operands[0]
        return name

    parts: dict[str, list[int | None]] = {name: [] for name in number}
    last = of[origin(inside[-1].name)]
    for it in inside:
        for position, operand in enumerate(it.operands):
            if operand not in of or it.operation == "bitcast" or origin(operand) not in parts:
                continue
            if it.operation == "dynamic-slice" and position == 0:
                parts[origin(operand)].append(_bytes(it.type, anywhere=True))
            elif it is last and it.operation == "dynamic-update-slice" and position == 0:
                parts[origin(operand)].append(0)
            else:
                parts[origin(operand)].append(None)
    total = 0
    for name, sizes in parts.items():
        whole = _bytes(taken[number[name]])
        total += whole if None in sizes else min(whole, max(sizes, default=0))
    if last.operation == "dynamic-update-slice":
        return total + min(_bytes(result), _bytes(of[last.operands[1]].type, anywhere=True))
    return total + _bytes(result)


def _types(tuple_: str) -> list[str]:
    return [match[0] for match in re.finditer(r"\w+\[[\d,]*\](\{[^}]*\})?", tuple_)]


def _bytes(type_: str, anywhere: bool = False) -> int:
    total = 0
    for dtype, dimensions, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", type_):
        if dtype not in _SIZES or "S(" in layout and not anywhere:  # S(1) is the memory on the chip
            continue
        size = _SIZES[dtype]
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size
    return total
