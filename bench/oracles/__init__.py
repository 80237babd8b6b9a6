"""Our functions compared with those of libraries that cannot live beside us."""
