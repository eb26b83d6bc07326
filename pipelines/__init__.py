"""What is run: the command line, and the only place that knows Ray."""
