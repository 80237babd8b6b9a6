"""Reports: figures and self-contained HTML for any room with numbers to show."""
