"""Files and pipes: the only package that knows them."""
