"""A study: many methods over tasks, splits and seeds, one result line per finished cell, made into tables and a page.

Everything here reads plain mappings (JSON lines); nothing trains, and of a method nothing is looked up by name but
whether it relays all factors (`fedasym.reports.comparison.relays`).
"""
