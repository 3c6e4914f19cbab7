"""The command line: its words, and what is seen while a command works."""
