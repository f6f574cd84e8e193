"""Where the parts meet: plan -> make nodes -> analyse -> show."""
