"""The methods: each one file that reads like its paper."""
