"""The cells of the paper's Tables 5.1 and C.1, trained and scored one by one."""
