"""Every method on one data set at one budget: what each is worth, and what it costs."""
