"""What a user does: train, compare, embed, export, report."""
