"""The replay memory, under the name that method files import."""

from utils.memory.buffer import Buffer, fill_buffer, icarl_replay  # noqa: F401
