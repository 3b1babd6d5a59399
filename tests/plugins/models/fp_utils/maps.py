def distance_of_maps(new, old):
    return sum((a - b).pow(2).mean() for a, b in zip(new, old)) / len(new)
