"""The grid of the paper's Tables 5.1 and C.1, trained and scored cell by cell."""
