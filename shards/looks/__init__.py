"""What a person sees of data: pictures of samples, and numbers of splits."""
