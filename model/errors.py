"""Errors that the user can put right; each message is one line that says what is wrong and the way out."""


class ModelError(ValueError):
    """A network, a setting or a file that was asked for and cannot be used."""


class WeightsError(ModelError):
    """Weights that cannot be read, recognised, used or written; the message names the file."""
