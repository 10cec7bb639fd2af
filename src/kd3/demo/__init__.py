"""The embedded demo: real digits as the lost data, rendered pictures as the crawl.

Importing this package is light: torch, scikit-learn and matplotlib are loaded where they are used.
"""
