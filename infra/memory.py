"""How much memory there is to have."""

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that processes here can still take: the machine's, or what the container's limit leaves of it."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except FileNotFoundError:  # no container, or not of the second version of control groups
        return available
    if limit == "max":
        return available
    # What the container holds of files it can give back.
    return min(available, int(limit) - used + int(statistics.get("inactive_file", 0)))
