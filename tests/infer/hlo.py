"""Reading what XLA has made of a program: the instructions that write arrays, and how large these are."""

import dataclasses
import math
import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?[\w.\-]+ = (.+?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b[a-z]+\d*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|condition|body)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of the operation.
      shapes: of its result; several, if that is a tuple.
      called: computations that it names, by the role they have.
      is_root: whether it is the result of its computation.
      text: the line.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    called: dict[str, str]
    is_root: bool
    text: str

    @property
    def size(self) -> int:
        """Elements of its result."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def dimensions(self) -> set[int]:
        return {dimension for shape in self.shapes for dimension in shape}


class Module:
    """A compiled program.

    Attributes:
      text: as XLA prints it.
      entry: name of the computation that runs first.
      computations: instructions, by the name of their computation.
    """

    def __init__(self, text: str):
        self.text, self.entry = text, ""
        self.computations: dict[str, list[Instruction]] = {}
        own: list[Instruction] = []
        for line in text.splitlines():
            if begins := _COMPUTATION.match(line):
                own = self.computations[begins[2]] = []
                self.entry = begins[2] if begins[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                own.append(_instruction(found))

    def everything(self) -> list[Instruction]:
        """All instructions, those inside fusions among them."""
        return [instruction for own in self.computations.values() for instruction in own]

    def run(self, computation: str | None = None) -> list[Instruction]:
        """The instructions that a computation runs, those of its loops among them; a fusion is a single one."""
        found = []
        for instruction in self.computations[computation or self.entry]:
            found.append(instruction)
            if instruction.name in ("while", "call", "conditional"):
                found += [inner for name in instruction.called.values() for inner in self.run(name)]
        return found

    def loops(self) -> list[Instruction]:
        """Those that the entry runs, not those inside others."""
        return [instruction for instruction in self.computations[self.entry] if instruction.name == "while"]

    def writes(self, instruction: Instruction) -> bool:
        """Whether an instruction writes its whole result, rather than passing arrays on or changing some entries."""
        if instruction.name == "fusion":
            fused = self.computations[instruction.called["calls"]]
            return any(self.writes(inner) for inner in fused if inner.is_root)
        return instruction.name not in _PASSES_ON


_PASSES_ON = {
    "bitcast",
    "call",
    "conditional",
    "constant",
    "dynamic-update-slice",
    "get-tuple-element",
    "parameter",
    "scatter",
    "tuple",
    "while",
}


def _instruction(found: re.Match[str]) -> Instruction:
    root, result, name, rest = found.groups()
    shapes = tuple(tuple(int(n) for n in dims.split(",") if n) for dims in _ARRAY.findall(result))
    return Instruction(name, shapes, dict(_CALLED.findall(rest)), root is not None, found.string.strip())
