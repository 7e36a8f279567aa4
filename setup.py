from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("geometry", "ops", "backbone", "bev", "occupancy", "lane_topology", "data_tools", "configs", "engine")
packages = find_packages(str(Path(__file__).parent), include=[pattern for r in ROOMS for pattern in (r, f"{r}.*")])

setup(
    package_dir={"drivestack": "."},
    packages=["drivestack"] + [f"drivestack.{name}" for name in packages],
)
