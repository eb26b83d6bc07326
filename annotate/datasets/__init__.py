"""Data sets that bring truth."""
