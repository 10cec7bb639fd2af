"""The lists, beside a pool, of what is not in it."""

REJECTED = "rejected.csv"
DUPLICATES = "duplicates.csv"
NEAR_DUPLICATES = "near-duplicates.csv"
KEPT_OUT = "kept-out.csv"
LEFT_OUT = (REJECTED, DUPLICATES, NEAR_DUPLICATES, KEPT_OUT)
