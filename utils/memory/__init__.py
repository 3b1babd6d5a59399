"""Memories of samples and exemplars, and what is chosen for them."""
