"""Request records and their evaluation: metrics, confidence intervals, claims."""
