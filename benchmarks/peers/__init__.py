"""What a user would write instead of pulsecart, according to the frameworks' documentation."""
