"""Layers with additive low-rank terms."""

from backbone.mammoth.additive import LoRAAttention, LoRALayer, LoRAMlp  # noqa: F401
