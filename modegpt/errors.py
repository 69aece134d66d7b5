"""The one exception for everything a user can mend: its message is one clear line."""


class ModegptError(ValueError):
    """Bad input (a model, a text, an option, a folder). The command line prints it and exits with 2."""
