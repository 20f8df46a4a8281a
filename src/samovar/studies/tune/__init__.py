"""`samovar tune`: successive halving over rho, learning rate and weight decay."""
