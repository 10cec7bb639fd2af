"""Files that are either whole or absent: atomic writes, locks, hashes."""
