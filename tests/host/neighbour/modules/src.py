OWNER = "the neighbour"
