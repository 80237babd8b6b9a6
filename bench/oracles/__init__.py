"""Compare our functions with those of libraries that cannot share our environment."""
