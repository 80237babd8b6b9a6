"""What pages are made of: drawings and self-contained HTML, for whichever room has numbers to show."""
