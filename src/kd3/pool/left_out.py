"""Lists, beside a pool, of the images that are not in it."""

REJECTED = "rejected.csv"
DUPLICATES = "duplicates.csv"
NEAR_DUPLICATES = "near-duplicates.csv"
KEPT_OUT = "kept-out.csv"
LEFT_OUT = (REJECTED, DUPLICATES, NEAR_DUPLICATES, KEPT_OUT)
