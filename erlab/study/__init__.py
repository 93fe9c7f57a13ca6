"""The study: its notebooks and report, run in order and only if a result could differ."""
