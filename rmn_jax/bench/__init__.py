"""Speed, measured so that a ratio can be believed: both sides in one process, interleaved, median and spread."""
