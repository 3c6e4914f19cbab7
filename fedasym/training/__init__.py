"""Local steps and evaluation."""
