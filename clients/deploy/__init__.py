"""A site: its kit, what it runs, and the check before Flower's code of an app."""
