"""The one exception for everything a user can mend, and the one warning: their messages are one clear line."""


class ModegptError(ValueError):
    """Bad input (a model, a text, an option, a folder). The command line prints it and exits with 2."""

    def _render_traceback_(self) -> list[str]:
        """A notebook shows that line too, and no traceback (IPython asks for this)."""
        return [f"modegpt: {self}"]


class ModegptWarning(UserWarning):
    """Something that works, but perhaps not as it is meant: one clear line, which the command line prints."""
