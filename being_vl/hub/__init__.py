"""checkpoint folder → repository on the Hub: what goes, whether it is whole, and the card that says what it is."""
