"""One HTML file about a run, or a comparison of several: no script, no network, no other file."""
