"""The lists, beside a pool, of what is not in it."""

REJECTED = "rejected.csv"
DUPLICATES = "duplicates.csv"
NEAR_DUPLICATES = "near-duplicates.csv"
KEPT_OUT = "kept-out.csv"
