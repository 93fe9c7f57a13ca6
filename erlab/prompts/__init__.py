"""Prompts: the project's own grammar, domain datasets, and the lengths of a workload."""
