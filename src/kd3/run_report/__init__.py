"""One HTML file that tells what a run did, or how several compare: no script, no network, no file beside it."""
