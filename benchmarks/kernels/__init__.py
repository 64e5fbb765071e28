"""Each op of the table in the form that runs here, against its plain-torch meaning."""
