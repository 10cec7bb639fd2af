"""The embedded demo: real digits play the lost data, rendered pictures play the crawl.

Importing this package is light: torch, scikit-learn and matplotlib are loaded where they are used.
"""
