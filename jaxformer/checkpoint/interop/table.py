"""A family's rules for one model, checked against the tensors of both sides before any is read."""

import re
from collections.abc import Collection, Mapping

from flax.core import meta

from jaxformer.checkpoint.interop.checkpoint_files import leaf_of
from jaxformer.checkpoint.interop.family import Family
from jaxformer.checkpoint.interop.rules import Rule, Shape
from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.checkpoint.manifest import Description, describe
from jaxformer.errors import UserError, did_you_mean
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import build_model

FLOATS = ("float32", "bfloat16", "float16")  # what float32 holds exactly


class Table:
    """`leaves`: our parameters as they are stacked; `rules`: in the family's order."""

    def __init__(self, family: Family, model: ModelConfig) -> None:
        self.family, self.model = family, model
        parameters = meta.unbox(abstract_parameters(build_model(model)))
        self.leaves: Description = describe(parameters)
        self.rules = family.rules(model)

    def shapes(self, rule: Rule) -> list[Shape]:
        """The shapes of a rule's parameters, one layer and one expert of each."""
        return [self._shape(path) for path in rule.ours]

    def stored(self, rule: Rule) -> dict[str, Shape]:
        """The shapes of a rule's tensors of theirs, by name."""
        return dict(zip(rule.names, rule.shapes(self.shapes(rule)), strict=True))

    def _shape(self, path: str) -> Shape:
        leaf, place = leaf_of(path, self.model)
        return tuple(self.leaves[leaf]["shape"])[len(place) :]

    def rules_of(self, tensors: Mapping[str, TensorInfo], where: str) -> dict[str, Rule]:
        """The rule of every tensor that is to be read, in the order of `tensors`.

        Raises:
            UserError: tensors are missing or left over, or have another shape or dtype.
        """
        found = {self.name(name, tensors): rule for rule in self.rules for name in rule.names}
        fresh = self.fresh(tensors)
        faults = [
            f"missing   {name}{self._hint(name)}{did_you_mean(name, tensors.keys() - found.keys())}"
            for name in found
            if name not in tensors and name not in fresh
        ]
        known = {*found, *(name for name, _ in self.copies(tensors))}
        faults += [
            f"left over {name} {list(info.shape)}"
            for name, info in tensors.items()
            if name not in known and re.fullmatch(self.family.unused, name) is None
        ]
        for rule in self.rules:
            for theirs, shape in self.stored(rule).items():
                if (name := self.name(theirs, tensors)) in tensors:
                    faults += self._differences(name, tensors[name], shape)
        if faults:
            shown = faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else [])
            raise UserError(
                f"{where} does not have the tensors of a {self.family.model_type} with its "
                f"config.json:\n  " + "\n  ".join(shown)
            )
        return {name: found[name] for name in tensors if name in found}

    def fresh(self, tensors: Mapping[str, TensorInfo]) -> Collection[str]:
        """The names of the family's tensors that the file lacks and need not have."""
        names = self.family.fresh
        return () if any(self.name(name, tensors) in tensors for name in names) else names

    def copies(self, tensors: Mapping[str, TensorInfo]) -> list[tuple[str, str]]:
        """The names of tensors that must be copies, each with that of the original: a tied model's
        head, and what the family stores again."""
        rule = next((rule for rule in self.rules if rule.ours == ("embedding",)), None)
        if rule is None:
            return []
        embedding = self.name(rule.theirs, tensors)
        is_tied = self.model.tie_embeddings
        found = [("lm_head.weight", embedding)] if is_tied and "lm_head.weight" in tensors else []
        for pattern, original in self.family.copies:
            is_head = is_tied and original == "lm_head.weight"
            original = embedding if is_head else self.name(original, tensors)
            found += [(name, original) for name in tensors if re.fullmatch(pattern, name)]
        return found

    def name(self, name: str, tensors: Mapping[str, TensorInfo]) -> str:
        """What the tensor `name` of theirs is called among `tensors`."""
        names = [name, *(name.replace(*pair) for pair in self.family.aliases)]
        names += [each.removeprefix(self.family.prefix) for each in names]
        return next((each for each in names if each in tensors), name)

    def _hint(self, name: str) -> str:
        if name == "lm_head.weight" and not self.model.tie_embeddings:
            return " (tie_word_embeddings is false in config.json, or left out)"
        return ""

    def _differences(self, name: str, info: TensorInfo, shape: Shape) -> list[str]:
        if info.shape != shape:
            return [f"shape     {name}: {list(info.shape)}, not {list(shape)}"]
        if info.dtype not in FLOATS:
            return [f"dtype     {name}: {info.dtype}; supported: {', '.join(FLOATS)}"]
        return []
