"""The memory of one part a task, under the name that method files import."""

from utils.memory.ring import RingBuffer  # noqa: F401
