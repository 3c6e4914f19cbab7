"""The warm worker of a site: a process that keeps the model between Flower's short-lived ones."""
