"""NVIDIA Triton: model repositories, the embedded server, the server with TensorRT-LLM, and external servers."""

from erlab.serving.triton.server import Server

__all__ = ["Server"]
