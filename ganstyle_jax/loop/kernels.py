"""What the kernels of a compiled program do, read from the program's text: arithmetic, memory traffic, exchanges.

XLA's GPU compiler counts nothing itself, and says only in its text what it has made: each instruction of the entry, of
the loops' bodies and of what those call is a kernel, an exchange between devices, or no work at all. Convolutions and
products of matrices are counted by their shapes, with the places outside the picture as work as well; the rest counts
one operation for each number that is computed. A kernel reads its operands and writes its results once; of what it
slices it reads the slice alone, and what it updates in place it writes in that place alone.

Of a conditional the dearest branch is run. How often, the program does not say; a method can, by the scope in which it
has the conditional, such as `every_16_steps`: then that branch counts a sixteenth, and the other the rest.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal["convolution", "product", "exchange", "other"]
EXCHANGES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
# Nothing is run for these.
FREE = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "get-dimension-size", "domain",
}  # fmt: skip
# These compute no number: they move them.
MOVES = FREE | {
    "broadcast", "reshape", "transpose", "slice", "dynamic-slice", "dynamic-update-slice", "iota", "convert", "copy",
    "concatenate", "pad", "reverse", "gather", "bitcast-convert", "fusion", "call", "copy-start", "copy-done",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program."""

    dtype: str  # as XLA writes it: bf16, f32
    sides: tuple[int, ...]
    order: tuple[int, ...]  # of the sides in memory, the one whose neighbours are beside each other first

    @property
    def size(self) -> int:
        return math.prod(self.sides)

    @property
    def bytes(self) -> int:
        return self.size * BYTES.get(self.dtype, 4)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program."""

    name: str
    shapes: tuple[Shape, ...]  # of its results
    op: str
    operands: tuple[str, ...]
    attributes: str  # what stands after the operands
    root: bool  # the result of its computation

    @functools.cached_property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def place(self) -> str:
        """Where in the method's code it comes from, as JAX names it: `jit(step)/jvp(Generator)/double1/conv`."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, *keys: str) -> list[str]:
        """Names of the computations that it calls as one of `keys`."""
        listed = re.findall(rf"\b(?:{'|'.join(keys)})=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return re.findall(r"[\w.\-]+", " ".join(listed))


Computation = dict[str, Instruction]  # in the program's order


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What is run at once, `times` times in a step; figures are of one time."""

    name: str
    kind: Kind
    place: str
    flops: float  # of convolutions and products; else operations on single numbers
    traffic: int  # bytes from and to memory; of an exchange its result's on a device
    dtype: str = ""  # of what is convolved or multiplied
    precise: bool = False  # float32 in full, where a GPU would round to TF32
    channels_last: bool = True  # of a convolution: all its maps
    what: str = ""  # cuDNN's name of a convolution, or the kind of an exchange
    times: float = 1  # in a step, on average
    peak: float = 1  # so many times as often in a step that takes the dearest branch of every conditional
    looped: bool = False  # in the body of a loop of the program


def kernels(program: str) -> list[Kernel]:
    """Kernels of one run of the program, in its order.

    Those of a loop's body stand there once, with the number of its rounds, or 1 where the program does not know it.
    """
    computations, entry = _parse(program)
    return list(_walk(computations, entry, 1, False))


# ---------------------------------------------------------------------------------------------------------------------
# The text


def _parse(program: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the name of the one that is run."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in program.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text is no program of XLA's: it has no ENTRY")
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    line = re.sub(r"/\*.*?\*/", "", line).strip()
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    found = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if found is None:
        return None
    opening = end + found.end() - 1
    closing = opening + _closing(rest[opening:])
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opening:closing]))
    root = line.startswith("ROOT ")
    return Instruction(name.lstrip("%"), _shapes(rest[:end]), found[1], operands, rest[closing:], root)


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the one with which the text begins."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _shapes(text: str) -> tuple[Shape, ...]:
    found = re.findall(r"(\w+)\[([\d,<=]*)\](?:\{([\d,]*))?", text)

    def numbers(listed: str) -> tuple[int, ...]:
        return tuple(int(side) for side in listed.replace("<=", "").split(",") if side)

    return tuple(Shape(dtype, numbers(sides), numbers(order)) for dtype, sides, order in found)


# ---------------------------------------------------------------------------------------------------------------------
# What is run


def _walk(computations: dict[str, Computation], name: str, times: int, looped: bool) -> Iterator[Kernel]:
    computation = computations[name]
    for instruction in computation.values():
        op = instruction.op
        if op in FREE or op.endswith(("-done", "-update")):
            continue
        if op == "while":
            rounds = re.search(r'known_trip_count[^\d}]*"?(\d+)', instruction.attributes)
            for body in instruction.called("body"):
                yield from _walk(computations, body, times * (int(rounds[1]) if rounds else 1), True)
        elif op == "conditional":
            branches = instruction.called("branch_computations", "true_computation", "false_computation")
            walked = [list(_walk(computations, branch, times, looped)) for branch in branches]
            yield from _taken(walked, instruction.place)
        elif op in ("call", "async-start"):
            for called in instruction.called("to_apply", "calls"):
                yield from _walk(computations, called, times, looped)
        else:
            yield dataclasses.replace(_kernel(computations, computation, instruction), times=times, looped=looped)


def _taken(branches: list[list[Kernel]], place: str) -> Iterator[Kernel]:
    """Of a conditional's branches the dearest, in all steps or in each so manieth, between which the other is run."""
    dearest, *others = sorted(branches, key=lambda branch: sum(kernel.traffic for kernel in branch), reverse=True)
    said = re.search(r"\bevery_(\d+)_steps\b", place.rpartition("/branch_")[2])  # of its own, not of one around it
    if said is None:
        yield from dearest
        return
    share = 1 / max(1, int(said[1]))
    for kernel in dearest:
        yield dataclasses.replace(kernel, times=kernel.times * share, peak=kernel.peak / share)
    for kernel in others[0] if others else ():
        yield dataclasses.replace(kernel, times=kernel.times * (1 - share), peak=0)


def _kernel(computations: dict[str, Computation], computation: Computation, instruction: Instruction) -> Kernel:
    exchange = instruction.op.removesuffix("-start")
    if exchange in EXCHANGES:
        # What starts an exchange gives back operand and result, and counters.
        both = instruction.op.endswith("-start") and exchange != "all-reduce"
        sizes = [shape.bytes for shape in instruction.shapes]
        moved = max(sizes) if both else sum(sizes)
        return Kernel(instruction.name, "exchange", instruction.place, 0, moved, what=exchange)
    inner = list(_inside(computations, computation, instruction))
    largest = max(inner, key=lambda part: part[1], default=None)
    flops = sum(part[1] for part in inner)
    traffic = _traffic(computations, computation, instruction)
    if largest is None:
        alone = 0.0 if instruction.op in MOVES else float(sum(shape.size for shape in instruction.shapes))
        fused = instruction.called("calls")
        single = sum(_single_numbers(computations, called) for called in fused)
        places = [part.place for called in fused for part in computations.get(called, {}).values() if part.place]
        place = instruction.place or next(reversed(places), "")
        return Kernel(instruction.name, "other", place, alone + single, traffic, what=instruction.op)
    kind, _, shapes, at = largest
    precise = bool(re.search(r"operand_precision\W*=?\W*\bhighest", at.attributes, re.IGNORECASE))
    target = re.search(r'custom_call_target="_*cudnn\$(\w+)', at.attributes)
    last = kind != "convolution" or all(_channels_last(at, shapes))
    what = target[1] if target else kind
    place = instruction.place or at.place
    return Kernel(instruction.name, kind, place, flops, traffic, shapes[0].dtype, precise, last, what)


def _inside(
    computations: dict[str, Computation], computation: Computation, instruction: Instruction
) -> Iterator[tuple[Kind, float, list[Shape], Instruction]]:
    """Convolutions and products that an instruction is or has fused: kind, FLOPs, shapes of operands and result."""
    read = [computation[name] for name in instruction.operands[:2] if name in computation]
    shapes = [shape for part in (*read, instruction) for shape in part.shapes[:1]]
    if instruction.op == "convolution" or "cudnn$conv" in instruction.attributes:
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
        if labels and len(shapes) == 3:
            # Of each number of the result, or of the gradient by it: twice the kernel's numbers that meet in it.
            if "convBackwardFilter" in instruction.attributes:
                _, result, kernel = shapes
            elif "convBackwardInput" in instruction.attributes:
                result, kernel, _ = shapes
            else:
                _, kernel, result = shapes
            met = kernel.size / kernel.sides[labels[2].index("o")]
            yield "convolution", 2.0 * result.size * met, shapes, instruction
    elif instruction.op == "dot" or "cublas$" in instruction.attributes:
        contracted = re.search(r"lhs_contracting_dim\w*\"?[=:][\[{]([^\]}]*)", instruction.attributes)
        if contracted and len(shapes) == 3:
            summed = math.prod(shapes[0].sides[int(side)] for side in re.findall(r"\d+", contracted[1]))
            yield "product", 2.0 * shapes[2].size * summed, shapes, instruction
    for called in instruction.called("calls") if instruction.op == "fusion" else ():
        for part in computations.get(called, {}).values():
            yield from _inside(computations, computations[called], part)


def _channels_last(convolution: Instruction, shapes: list[Shape]) -> Iterator[bool]:
    """Of the two maps of a convolution: whether a pixel's channels lie beside each other."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    assert labels is not None
    left, _, out = labels.groups()
    maps = [(shapes[0], left), (shapes[2], out)]
    if "convBackwardFilter" in convolution.attributes:
        maps = [(shapes[0], left), (shapes[1], out)]
    elif "convBackwardInput" in convolution.attributes:
        maps = [(shapes[0], out), (shapes[2], left)]
    for shape, label in maps:
        yield not shape.order or shape.order[0] == label.index("f")


def _single_numbers(computations: dict[str, Computation], name: str) -> float:
    """Operations of a fused computation."""
    total = 0.0
    computation = computations.get(name, {})
    for part in computation.values():
        if part.op in ("reduce", "reduce-window"):
            first = computation.get(part.operands[0])
            total += first.shapes[0].size if first else 0
        elif part.op not in MOVES:
            total += sum(shape.size for shape in part.shapes)
        total += sum(_single_numbers(computations, called) for called in part.called("calls"))
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def _traffic(computations: dict[str, Computation], computation: Computation, instruction: Instruction) -> int:
    sizes = [computation[name].bytes if name in computation else 0 for name in instruction.operands]
    if instruction.op in ("slice", "dynamic-slice", "gather"):
        return 2 * instruction.bytes
    if instruction.op == "dynamic-update-slice":
        return 2 * sizes[1]
    fused = [computations[called] for called in instruction.called("calls") if called in computations]
    if instruction.op != "fusion" or not fused:
        return sum(sizes) + instruction.bytes
    users = _users(fused[0])
    read = sum(_read(users, part) for part in fused[0].values() if part.op == "parameter")
    return read + _written(fused[0])


def _read(users: dict[str, list[Instruction]], source: Instruction) -> int:
    """Bytes that a fused computation reads of one of its values. users: of its values, by name."""
    total = 0
    for user in users.get(source.name, ()):
        if user.op in ("slice", "dynamic-slice", "gather") and user.operands[0] == source.name:
            total += user.bytes
        elif user.op == "dynamic-update-slice" and user.operands[0] == source.name:
            continue  # in its place
        elif user.op == "bitcast":
            total += _read(users, user)
        else:
            return source.bytes
    return min(total, source.bytes)


def _users(computation: Computation) -> dict[str, list[Instruction]]:
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in computation.values():
        for name in instruction.operands:
            users[name].append(instruction)
    return users


def _written(computation: Computation) -> int:
    """Bytes of a fused computation's results."""
    root = next(part for part in computation.values() if part.root)
    total = 0
    for name in root.operands if root.op == "tuple" else (root.name,):
        part = computation[name]
        while part.op == "bitcast" and part.operands[0] in computation:
            part = computation[part.operands[0]]
        if part.op == "dynamic-update-slice" and part.operands[1] in computation:
            total += computation[part.operands[1]].bytes
        else:
            total += computation[name].bytes
    return total
