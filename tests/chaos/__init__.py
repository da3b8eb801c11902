"""A package, so that its service ends with the last of its tests, before those of others start theirs."""
