"""Videos in, shards out: every annotator is one file, one model, one small class."""
