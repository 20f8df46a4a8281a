"""`samovar compare`: what SAM and its relatives cost and gain under one budget."""
