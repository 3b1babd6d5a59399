"""The memory with one part per task, under the name that method files import."""

from utils.memory.ring import RingBuffer  # noqa: F401
