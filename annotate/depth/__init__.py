"""Depth along the optical axis, valid where it is known."""
