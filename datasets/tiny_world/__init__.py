"""A procedural captioned picture world: every picture, caption and question is a pure function of (seed, index)."""
