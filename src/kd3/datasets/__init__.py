"""The data sets of the paper, from the files that their authors publish to pools, training sets and test sets."""
