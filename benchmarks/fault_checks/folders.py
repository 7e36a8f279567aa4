def run_folders(*a):
    return {}


def table(x):
    return []
