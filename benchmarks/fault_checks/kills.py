def run_kills(*a):
    return {}


def table(x):
    return []
