"""Processes, Flower's command line and app bundle, progress."""
