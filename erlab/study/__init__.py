"""The study: its notebooks run in order by papermill, and only those whose result could differ."""
