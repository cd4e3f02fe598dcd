"""The data of a page as the page itself joins them: those of the space, and those of one run."""

from jasgnas.pages.data import page_data


def joined_data(space, run):
    data = page_data(space, [run])
    (own,) = data["runs"]
    both = data["space"] | own
    return both | {name: data["space"][name] | own[name] for name in TABLES}


TABLES = ("operators", "segments", "parts", "groups", "dimensions")
