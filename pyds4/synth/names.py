"""Names of tensors: GGUF's, those published with the weights, and those of ``transformers``."""

from __future__ import annotations

__all__ = ["EXPERTS", "HF_LAYER", "HF_TOP", "OFFICIAL_LAYER", "OFFICIAL_TOP"]

OFFICIAL_TOP = {
    "token_embd.weight": "embed.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
    "output_hc_fn.weight": "hc_head_fn",
    "output_hc_base.weight": "hc_head_base",
    "output_hc_scale.weight": "hc_head_scale",
}
HF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "output_hc_fn.weight": "model.hc_head.hc_fn",
    "output_hc_base.weight": "model.hc_head.hc_base",
    "output_hc_scale.weight": "model.hc_head.hc_scale",
}
# GGUF's name behind "blk.N.", the official one behind "layers.N.", HF's behind "model.layers.N.".
_LAYER = [
    ("attn_norm.weight", "attn_norm.weight", "input_layernorm.weight"),
    ("ffn_norm.weight", "ffn_norm.weight", "post_attention_layernorm.weight"),
    ("attn_sinks.weight", "attn.attn_sink", "self_attn.sinks"),
    ("attn_q_a.weight", "attn.wq_a.weight", "self_attn.q_a_proj.weight"),
    ("attn_q_a_norm.weight", "attn.q_norm.weight", "self_attn.q_a_norm.weight"),
    ("attn_q_b.weight", "attn.wq_b.weight", "self_attn.q_b_proj.weight"),
    ("attn_kv.weight", "attn.wkv.weight", "self_attn.kv_proj.weight"),
    ("attn_kv_a_norm.weight", "attn.kv_norm.weight", "self_attn.kv_norm.weight"),
    ("attn_output_a.weight", "attn.wo_a.weight", "self_attn.o_a_proj.weight"),
    ("attn_output_b.weight", "attn.wo_b.weight", "self_attn.o_b_proj.weight"),
    ("indexer.proj.weight", "attn.indexer.weights_proj.weight",
     "self_attn.compressor.indexer.scorer.weights_proj.weight"),
    ("indexer.attn_q_b.weight", "attn.indexer.wq_b.weight",
     "self_attn.compressor.indexer.q_b_proj.weight"),
    ("ffn_gate_inp.weight", "ffn.gate.weight", "mlp.gate.weight"),
    ("exp_probs_b.bias", "ffn.gate.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn_gate_tid2eid.weight", "ffn.gate.tid2eid", "mlp.gate.tid2eid"),
    ("ffn_gate_shexp.weight", "ffn.shared_experts.w1.weight",
     "mlp.shared_experts.gate_proj.weight"),
    ("ffn_up_shexp.weight", "ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight"),
    ("ffn_down_shexp.weight", "ffn.shared_experts.w2.weight",
     "mlp.shared_experts.down_proj.weight"),
]  # fmt: skip
for _kind in ("attn", "ffn"):
    for _part in ("fn", "base", "scale"):
        _LAYER.append((f"hc_{_kind}_{_part}.weight", f"hc_{_kind}_{_part}", f"{_kind}_hc.{_part}"))
for _gguf, _official, _hf in (
    ("attn_compressor", "attn.compressor", "self_attn.compressor"),
    ("indexer_compressor", "attn.indexer.compressor", "self_attn.compressor.indexer"),
):
    _LAYER += [
        (f"{_gguf}_kv.weight", f"{_official}.wkv.weight", f"{_hf}.kv_proj.weight"),
        (f"{_gguf}_gate.weight", f"{_official}.wgate.weight", f"{_hf}.gate_proj.weight"),
        (f"{_gguf}_ape.weight", f"{_official}.ape", f"{_hf}.position_bias"),
        (f"{_gguf}_norm.weight", f"{_official}.norm.weight", f"{_hf}.kv_norm.weight"),
    ]
OFFICIAL_LAYER = {gguf: official for gguf, official, _ in _LAYER}
HF_LAYER = {gguf: hf for gguf, _, hf in _LAYER}
# (official, HF) of one expert's matrix; HF's stack and which half of its rows.
EXPERTS = {
    "ffn_gate_exps.weight": ("w1", "gate_proj", "gate_up_proj", 0),
    "ffn_up_exps.weight": ("w3", "up_proj", "gate_up_proj", 1),
    "ffn_down_exps.weight": ("w2", "down_proj", "down_proj", 0),
}
