"""Networks over pools: batches, scans, views, and the teacher's outputs stored beside a pool."""
