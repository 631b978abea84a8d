"""What a network costs and what its memories hold."""
