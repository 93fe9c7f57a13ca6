"""Everything that knows NVIDIA Triton: model repositories, the server, and the client's messages."""

from erlab.serving.triton.server import Server

__all__ = ["Server"]
