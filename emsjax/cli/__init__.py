"""Code that all commands share: parsing, exit statuses, interrupts and wording."""
