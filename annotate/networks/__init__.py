"""The torch modules of published annotators, loading the published checkpoints."""
