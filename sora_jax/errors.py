"""The base of every error that a user can mend: a command prints it as one line, and any other keeps its traceback."""


class SoraError(Exception):
  """One line that says what is wrong, where, and what to do."""


class InputError(SoraError, ValueError):
  """A setting, an argument or a file is not what it must be."""
