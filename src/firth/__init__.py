"""firth."""
