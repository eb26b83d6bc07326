"""Data sets that bring truth, one file each: they fill a clip's slots before any annotator does."""
