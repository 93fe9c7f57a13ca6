"""Request records and what is computed from them: metrics, confidence intervals, claims."""
