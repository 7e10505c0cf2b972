"""Features become a number: pure functions that know no ranks."""
