"""ids ↔ people: a conversation with a checkpoint, in the terminal and on a page."""
