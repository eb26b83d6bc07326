"""Which clips, which pixels, how often: reads indexes, decides, explains, and touches no pixel."""
