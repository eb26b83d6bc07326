"""Optical flow between any two frames of a clip."""
