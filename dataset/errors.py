"""What goes wrong with a user's data. Messages name the file and the way out; scripts print them as one line."""


class DataError(ValueError):
    """Data that is damaged, contradictory or not what it should be."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or folder that is not there."""
