"""A server for many machines: its home folder, keys, nginx, the sites' registration, start and status."""
