"""The verbs of the command line: settings in, a result out. Nothing here prints a result or exits."""
