"""The widened DiT and the temporal DPT."""
