"""The tables of a running ingest, and a batch's additions to them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS progress (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    position INTEGER PRIMARY KEY, source TEXT, key TEXT, sha256 BLOB UNIQUE,
    width INTEGER, height INTEGER, format TEXT, digest BLOB);
CREATE TABLE IF NOT EXISTS rejected (source TEXT, key TEXT, reason TEXT, detail TEXT);
CREATE TABLE IF NOT EXISTS duplicates (source TEXT, key TEXT, position INTEGER);
CREATE TABLE IF NOT EXISTS near_copies (source TEXT, key TEXT, position INTEGER, bits INTEGER, similarity REAL);
CREATE TABLE IF NOT EXISTS kept_out (
    source TEXT, key TEXT, known_source TEXT, known_key TEXT, bits INTEGER, similarity REAL);
CREATE TABLE IF NOT EXISTS hashes (position INTEGER PRIMARY KEY, hash INTEGER);
"""
TABLES = {"progress", "items", "rejected", "duplicates", "near_copies", "kept_out", "hashes"}


@dataclass(slots=True)
class Rows:
    """Rows that a batch adds to the tables of the same names; `renamed` changes `items`."""

    items: list[tuple[Any, ...]] = field(default_factory=list)
    renamed: list[tuple[str, str, int]] = field(default_factory=list)
    duplicates: list[tuple[str, str, int]] = field(default_factory=list)
    near_copies: list[tuple[str, str, int, int, float]] = field(default_factory=list)
    kept_out: list[tuple[str, str, str, str, int, float]] = field(default_factory=list)
    hashes: list[tuple[int, int]] = field(default_factory=list)
    rejected: list[tuple[str, str, str, str]] = field(default_factory=list)

    def write(self, database: sqlite3.Connection) -> None:
        """Put the rows into the open transaction."""
        run = database.executemany
        run("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self.items)
        run("UPDATE items SET source = ?, key = ? WHERE position = ?", self.renamed)
        run("INSERT INTO duplicates VALUES (?, ?, ?)", self.duplicates)
        run("INSERT INTO near_copies VALUES (?, ?, ?, ?, ?)", self.near_copies)
        run("INSERT INTO kept_out VALUES (?, ?, ?, ?, ?, ?)", self.kept_out)
        run("INSERT INTO hashes VALUES (?, ?)", self.hashes)
        run("INSERT INTO rejected VALUES (?, ?, ?, ?)", self.rejected)
