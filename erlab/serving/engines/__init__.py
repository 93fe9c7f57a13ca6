"""Engines of the experts: tiny Llamas, emulated experts, TensorRT-LLM, and OpenAI-compatible servers.

`kinds` has the interface and the table of all kinds.
"""
