"""Other projects on the same teacher, crawl, student and budget, each in an environment of its own."""
