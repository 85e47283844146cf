"""What a tensor is for, by its GGUF name, and how much of it one token reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyds4.model_file import ModelFile

ROUTED_EXPERTS, EMBEDDING, ROUTING_TABLE = "routed experts", "embedding", "routing table"

# The first pattern that a name contains decides.
_PATTERNS = (
    ("token_embd", EMBEDDING),
    ("tid2eid", ROUTING_TABLE),
    ("_shexp", "shared experts"),
    ("_exps", ROUTED_EXPERTS),
    ("ffn_gate_inp", "router"),
    ("exp_probs", "router"),
    ("hc_", "hyper-connections"),
    ("indexer", "indexer"),
    ("compress", "compressor"),
    ("norm", "norms"),
    ("attn", "attention"),
    ("ffn", "feed-forward"),
    ("rope", "rope"),
    ("output", "output"),
)


def role(name: str) -> str:
    """A group of tensors; ``other`` for names of another family."""
    return next((group for pattern, group in _PATTERNS if pattern in name), "other")


def bytes_per_step(file: ModelFile, sequences: int = 1) -> float:
    """Weight bytes that decoding one token of each of ``sequences`` reads, on average.

    Embedding and routing table count with the rows they give. Of the routed experts those are read
    that some token chose: each token chooses ``used`` of ``all``, as if at random.
    """
    every, used = file["deepseek4.expert_count"], file["deepseek4.expert_used_count"]
    assert isinstance(every, int)
    assert isinstance(used, int)
    share = 1.0 - (1.0 - used / every) ** sequences
    total = 0.0
    for tensor in file.tensors:
        group = role(tensor.name)
        if group == ROUTED_EXPERTS:
            total += tensor.byte_count * share
        elif group in (EMBEDDING, ROUTING_TABLE):
            total += tensor.byte_count / tensor.shape[-1] * sequences
        else:
            total += tensor.byte_count
    return total
