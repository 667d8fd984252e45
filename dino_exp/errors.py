"""The error that is the user's to mend."""


class UserError(Exception):
    """A configuration or file that cannot work; the message names it, its value, and what would be right."""
