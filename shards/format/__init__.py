"""What a built data set is on disk: manifest, index, tar members, annotations."""
