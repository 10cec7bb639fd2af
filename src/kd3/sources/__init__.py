"""Crawled files wherever they lie: from paths and URLs to records, one a file, and their labels."""
