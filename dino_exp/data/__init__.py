"""Where the images come from: one `load` per data set, each giving the `Splits` of `source`."""
