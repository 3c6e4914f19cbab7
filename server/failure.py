"""The one error by which a federation ends."""


class FederationError(RuntimeError):
    """The federation cannot go on; the text names clients, values and what to do."""
