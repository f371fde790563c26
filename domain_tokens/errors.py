"""The one exception that means "the user can mend this": scripts turn it into a line and exit 2."""


class UserError(Exception):
    """Bad input; the message is one line that says what was got, what was wanted and the mend."""
