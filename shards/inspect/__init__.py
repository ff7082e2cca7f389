"""What a person sees of data: previews, data plans, duplicates, differences, damage."""
