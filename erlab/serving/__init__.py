"""Deployment of systems: profiles, engines, Triton, and external servers."""
