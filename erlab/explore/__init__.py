"""Settings and widgets of the notebook `explore`."""
