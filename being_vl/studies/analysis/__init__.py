"""What a vocabulary has learned, for people: statistics and drawings."""
