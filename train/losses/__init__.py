"""One file a loss, each with its equation."""
