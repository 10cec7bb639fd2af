"""One file per command: settings in, a result out. Nothing here prints a result or exits."""
