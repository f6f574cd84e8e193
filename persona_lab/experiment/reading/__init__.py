"""What has been made, as tables, claims, reports and answers."""
