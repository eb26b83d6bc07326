"""Poses and intrinsics, with a reason wherever they are not to be trusted."""
