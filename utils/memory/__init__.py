"""Memories of samples and exemplars, and how samples are selected."""
