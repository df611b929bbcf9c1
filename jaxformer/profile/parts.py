"""Which part of a training step each instruction of its compiled program belongs to.

The program's text names the modules and scopes that every instruction was traced in, such as
`jit(train_step)/jvp(loss)/.../stack/groups/layer_1/mixer/dot_general`.
"""

import re
from collections import Counter

from jaxformer.model.config import ModelConfig
from jaxformer.plan.collectives import COLLECTIVES
from jaxformer.plan.hlo import Computation, Instruction

COLLECTIVE = "collectives"
REST = "rest"
PARTS_OF_LOOPS = ("before", "shared", "after")


def parts_of(program: dict[str, Computation], model: ModelConfig) -> dict[str, str]:
    """The part of every instruction, by its name: the mixer of a kind in a group of layers, ffn,
    norms, the scan over layers with the residual stream, embedding, loss, optimizer, collectives,
    or the rest.

    A fusion without a name of its own belongs where most of its instructions do, a copy to what it
    copies.
    """
    parts = {}
    for computation in program.values():
        for name, instruction in computation.instructions.items():
            parts[name] = _part(instruction, computation, program, model)
    return parts


def _part(
    instruction: Instruction,
    computation: Computation,
    program: dict[str, Computation],
    model: ModelConfig,
) -> str:
    fused = [
        inside
        for called in instruction.called("calls")
        if called in program
        for inside in program[called].instructions.values()
    ]
    if any(_is_collective(each) for each in (instruction, *fused)):
        return COLLECTIVE
    taken = [computation.instructions[name] for name in instruction.operands]
    for group in ([instruction], fused, taken):
        found = Counter(part_of(scope, model) for each in group if (scope := scope_of(each)))
        del found[REST]
        if found:
            return found.most_common(1)[0][0]
    return REST


def _is_collective(instruction: Instruction) -> bool:
    return re.sub(r"-(start|done)$", "", instruction.opcode) in COLLECTIVES


def scope_of(instruction: Instruction) -> str:
    """The modules and scopes in which the instruction was traced; empty if that is not known."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def part_of(scope: str, model: ModelConfig) -> str:
    """The part of a scope; `jvp(...)` and the like around its words do not count."""
    words = re.findall(r"[^/();]+", scope)
    for index, word in enumerate(words[:-1]):
        if re.fullmatch(r"layer_\d+", word):
            loops = [each for each in words[:index] if each in PARTS_OF_LOOPS]
            part = next((each for each in ("first", "tail") if each in words[:index]), "groups")
            where = [*loops[-1:], part]
            return _of_layer("/".join(["stack", *where, word]), words[index + 1], model)
    if any(word.endswith("norm") for word in words):
        return "norms"
    if "inputs" in words:
        return "embedding"
    if "stack" in words:
        return "scan and residual stream"
    return next((each for each in ("optimizer", "loss") if each in words), REST)


def _of_layer(path: str, module: str, model: ModelConfig) -> str:
    module, _, _ = module.partition(".")  # from the name of a method
    if module == "ffn":
        return "ffn"
    if module != "mixer":
        return "norms" if "norm" in module else "scan and residual stream"
    layers = model.layers_of_path(path)
    assert layers is not None
    mixer = model.layers()[layers[0]].mixer
    assert mixer is not None
    return f"mixer {mixer.kind}, layers {_listed(list(layers))}"


def _listed(layers: list[int]) -> str:
    """`0-3` for layers without a gap, `0, 2, ..., 10` or all of a few otherwise."""
    first, last = layers[0], layers[-1]
    if len(layers) > 1 and last - first == len(layers) - 1:
        return f"{first}-{last}"
    if len(layers) > 4:
        return f"{first}, {layers[1]}, ..., {last}"
    return ", ".join(map(str, layers))
