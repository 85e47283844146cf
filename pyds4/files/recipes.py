"""Which tensor gets which type: rules by name, the first that matches.

Every recipe ends with the layout of the published files: embeddings, compressors, indexers and
routers F16, other matrices Q8_0, vectors F32. What recipes differ in is the routed experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from ..errors import InvalidArgumentError
from ._kernels import type_named, writable_types

__all__ = ["RECIPES", "Choice", "Recipe", "recipe"]

Type = GGMLQuantizationType

_IN = ("*ffn_gate_exps.weight", "*ffn_up_exps.weight")
_OUT = "*ffn_down_exps.weight"
_PUBLISHED = (
    ("token_embd.weight", Type.F16),
    ("*compressor*", Type.F16),
    ("*indexer*", Type.F16),
    ("*hc*_fn.weight", Type.F16),
    ("*ffn_gate_inp.weight", Type.F16),
    ("*", Type.Q8_0),
)

_EXPERTS: dict[str, tuple[Type, Type]] = {
    "q2": (Type.IQ2_XXS, Type.Q2_K),
    "q2_k": (Type.Q2_K, Type.Q2_K),
    "q3": (Type.Q3_K, Type.Q3_K),
    "q4": (Type.Q4_K, Type.Q4_K),
    "q5": (Type.Q5_K, Type.Q5_K),
    "q6": (Type.Q6_K, Type.Q6_K),
    "q8": (Type.Q8_0, Type.Q8_0),
    "mxfp4": (Type.MXFP4, Type.MXFP4),
    "f16": (Type.F16, Type.F16),
}

RECIPES = ("exact", "q2-q4", *_EXPERTS)
"""Names that ``recipe`` knows. ``exact`` loses nothing (quantising: changes nothing but what rules
say); ``q2-q4`` is q2 with q4 in the last six layers."""

_FILE_TYPES = {
    Type.F32: LlamaFileType.ALL_F32,
    Type.F16: LlamaFileType.MOSTLY_F16,
    Type.BF16: LlamaFileType.MOSTLY_BF16,
    Type.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    Type.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Type.Q2_K: LlamaFileType.MOSTLY_Q2_K,
    Type.Q3_K: LlamaFileType.MOSTLY_Q3_K_M,
    Type.Q4_K: LlamaFileType.MOSTLY_Q4_K_M,
    Type.Q5_K: LlamaFileType.MOSTLY_Q5_K_M,
    Type.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    Type.IQ2_XXS: LlamaFileType.MOSTLY_IQ2_XXS,
    Type.MXFP4: LlamaFileType.MOSTLY_MXFP4_MOE,
}


@dataclass(frozen=True)
class Choice:
    """``asked``: by a rule of its own, not by the published layout."""

    type: Type
    asked: bool


@dataclass(frozen=True)
class Recipe:
    """Rules in order; ``exact`` keeps what no rule names."""

    name: str
    rules: tuple[tuple[str, Type], ...]
    exact: bool

    def choose(self, name: str, shape: Sequence[int], exact: Type) -> Choice:
        """The type for a tensor whose numbers ``exact`` holds without loss.

        A type whose blocks do not divide a row gives way to Q8_0, then F16.
        """
        if exact is Type.I32 or len(shape) == 1:
            return Choice(Type.I32 if exact is Type.I32 else Type.F32, False)
        for pattern, type in self.rules:
            if fnmatchcase(name, pattern):
                return Choice(_that_fits(type, shape[0]), True)
        if self.exact:
            return Choice(exact, False)
        for pattern, type in _PUBLISHED:
            if fnmatchcase(name, pattern):
                return Choice(_that_fits(type, shape[0]), False)
        raise AssertionError("the last pattern matches everything")

    @property
    def file_type(self) -> int:
        """``general.file_type``, by the routed experts."""
        for pattern, type in self.rules:
            if fnmatchcase("blk.0.ffn_gate_exps.weight", pattern):
                return int(_FILE_TYPES.get(type, LlamaFileType.GUESSED))
        return int(LlamaFileType.GUESSED)


def recipe(name: str, layers: int, rules: Sequence[str] = ()) -> Recipe:
    """The recipe called ``name`` for a model of ``layers`` layers.

    Args:
        rules: ``PATTERN=TYPE`` each, stronger than the recipe's own; ``blk.3-7.*`` in a pattern
            means those layers.

    Raises:
        InvalidArgumentError: an unknown recipe, rule or type.
    """
    own: list[tuple[str, Type]] = []
    for rule in rules:
        pattern, equals, wanted = rule.rpartition("=")
        if not equals or not pattern:
            raise InvalidArgumentError(f"rule {rule!r}: expected PATTERN=TYPE")
        type = type_named(wanted)
        if type not in writable_types():
            raise InvalidArgumentError(f"rule {rule!r}: {type.name} cannot be written")
        own += [(expanded, type) for expanded in _expand(pattern, layers)]
    if name == "exact":
        return Recipe(name, tuple(own), exact=True)
    if name == "q2-q4":
        for layer in range(max(0, layers - 6), layers):
            own.append((f"blk.{layer}.ffn_*_exps.weight", Type.Q4_K))
    elif name not in _EXPERTS:
        raise InvalidArgumentError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    into, out = _EXPERTS["q2" if name == "q2-q4" else name]
    own += [(pattern, into) for pattern in _IN] + [(_OUT, out)]
    return Recipe(name, tuple(own), exact=False)


def _expand(pattern: str, layers: int) -> list[str]:
    parts = pattern.split(".")
    if len(parts) < 2 or "-" not in parts[1]:
        return [pattern]
    first, _, last = parts[1].partition("-")
    if not (first.isdigit() and (last.isdigit() or not last)):
        return [pattern]
    end = int(last) if last else layers - 1
    return [".".join([parts[0], str(layer), *parts[2:]]) for layer in range(int(first), end + 1)]


def _that_fits(type: Type, columns: int) -> Type:
    for choice in (type, Type.Q8_0, Type.F16):
        if columns % GGML_QUANT_SIZES[choice][0] == 0:
            return choice
    raise AssertionError("every row is whole numbers")
