"""One state, one update, one loop: they serve step 1 and step 4, and the plain backbone."""
