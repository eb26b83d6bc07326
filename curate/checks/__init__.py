"""One file a check: a score stored with the clip, and a threshold that may move later."""
