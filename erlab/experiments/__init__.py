"""Experiments: sweeps over loads, measured or simulated, and what surrounds a measurement."""
