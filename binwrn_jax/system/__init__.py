"""What every room needs of this computer: the user's cache folder, libraries compiled here."""
