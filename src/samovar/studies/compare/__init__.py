"""SAM and its relatives under one budget: what each costs, what it gains, and which of them
pays."""
