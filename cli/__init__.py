"""The `graftwork` command: starts programs, tends the database, and speaks HTTP to the api."""
