"""The ways in which a run ends early that are nobody's bug."""


class UserError(Exception):
    """Bad input: says what was got, what was wanted and how to fix it; a script exits with 2."""


class StoppedError(Exception):
    """A run that was told to stop, or cannot go on, and left what --resume needs; exits with 1."""


class FailedError(Exception):
    """A run that came to its end with a result that must not be used; exits with 1."""
